"""What `vnpu-watch` shows, as plain values: a pure function of what stands in etcd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from coordinator.core.model import (
    Bytes,
    Coordinator,
    Demand,
    Device,
    Load,
    Order,
    Phase,
    Policy,
    Residency,
    Seat,
    Seed,
    Spec,
)
from coordinator.core.process import Process
from coordinator.picture import Picture

SILENCE_S = 3.0
"""The leader's heartbeat comes every second: after three, what is shown may be old."""


class OwnerView(msgspec.Struct, frozen=True):
    """Who holds pages of a device. `alive` false: its death is proven, its pages are not back yet."""

    engine: str
    bytes: Bytes
    alive: bool


class OperationView(msgspec.Struct, frozen=True):
    """What is going on at a device. `entered` false: granted, and the holder has not entered yet."""

    engine: str
    order: Order
    entered: bool


class DeviceView(msgspec.Struct, frozen=True):
    id: str
    driver: str
    capacity: int
    bytes: Bytes
    free: int
    owners: tuple[OwnerView, ...]
    operation: OperationView | None


class Wake(msgspec.Struct, frozen=True):
    """An engine's last restore: seconds from token to resident, and bytes copied in."""

    seconds: float
    bytes: int


class Stream(msgspec.Struct, frozen=True):
    """Weights on their way from another engine: bytes of all ranks, and where they come from."""

    have: int
    total: int
    source: str


class ModelView(msgspec.Struct, frozen=True):
    """One engine. `waiting` counts requests that wait for it, at gateways and at its own gate."""

    model: str
    engine: str
    phase: str
    devices: tuple[str, ...]
    bytes: int
    running: int
    waiting: int
    pinned: bool = False
    drained: bool = False
    wake: Wake | None = None
    error: str = ""
    stream: Stream | None = None
    ttft: float = 0.0
    """Seconds to the first byte of its newest answer, from the request's arrival at the engine; 0: none yet."""
    master: int = 0
    """Bytes of its weights in host memory, of all ranks: what it comes back from. Engines of one content share them."""


class HostView(msgspec.Struct, frozen=True):
    """A node's host memory: its limit (0: none), what master copies and saved KV take of it."""

    node: str
    total: int
    masters: int
    saved_kv: int


class View(msgspec.Struct, frozen=True):
    """The whole screen. `doubt` says why it may be out of date; empty: it is not."""

    leader: str
    gateway: str
    admin: str
    devices: tuple[DeviceView, ...]
    models: tuple[ModelView, ...]
    hosts: tuple[HostView, ...] = ()
    quarantined: tuple[str, ...] = ()
    doubt: str = ""


def build(picture: Picture, wakes: Mapping[str, Wake], silent_s: float | None) -> View:
    """`silent_s`: seconds since etcd was last heard; None: never yet."""
    leader = next((one for one in picture.of(Coordinator).values() if one.leading), None)
    beside = _Beside(picture)
    return View(
        leader=leader.id if leader else "",
        gateway=leader.gateway_url if leader else "",
        admin=leader.admin_url if leader else "",
        devices=tuple(_device(picture, name, device) for name, device in sorted(picture.of(Device).items())),
        models=tuple(
            sorted(
                [_model(picture, name, spec, wakes.get(name), beside) for name, spec in picture.of(Spec).items()]
                + _asleep(picture, beside),
                key=lambda model: model.engine,
            )
        ),
        hosts=_hosts(picture),
        quarantined=tuple(sorted(picture.quarantined)),
        doubt=doubt(picture, silent_s),
    )


def doubt(picture: Picture, silent_s: float | None) -> str:
    """Why what is shown may be out of date; empty: it is not. `silent_s` as of `build`."""
    return _doubt(any(one.leading for one in picture.of(Coordinator).values()), silent_s)


def remember(wakes: Mapping[str, Wake], picture: Picture) -> dict[str, Wake]:
    """The last restore of each engine that is known: a residency tells of the last operation only, and that may have
    been the way out since."""
    known = {engine: wake for engine, wake in wakes.items() if engine in picture.of(Spec)}
    for engine, residency in picture.of(Residency).items():
        if residency.phase is Phase.RESIDENT and residency.restored:
            known[engine] = Wake(sum(step.seconds for step in residency.steps), residency.restored)
    return known


def _hosts(picture: Picture) -> tuple[HostView, ...]:
    """One a node: all its devices report the same pool."""
    pools = {name.rpartition("/")[0]: device.host_ram for name, device in sorted(picture.of(Device).items())}
    return tuple(HostView(node, ram.total, ram.masters, ram.saved_kv) for node, ram in pools.items())


def _device(picture: Picture, name: str, device: Device) -> DeviceView:
    return DeviceView(
        id=name,
        driver=device.driver,
        capacity=device.capacity,
        bytes=_sum([owner.bytes for owner in device.owners]),
        free=device.capacity - device.charged,
        owners=tuple(OwnerView(owner.holder.engine, owner.bytes, owner.alive) for owner in device.owners),
        operation=_operation(device, picture.of(Seat).get(name), picture.written(Seat, name)),
    )


def _operation(device: Device, seat: Seat | None, granted: int) -> OperationView | None:
    """`granted`: the seat's revision; it is over once the daemon has closed it (PROTOCOL rule 3)."""
    if device.open is not None:
        return OperationView(device.open.holder.engine, device.open.order, entered=True)
    if seat is None or granted <= device.closed:
        return None
    return OperationView(seat.holder.engine, seat.order, entered=False)


class _Beside:
    """What stands under other keys than an engine's own, found once for all engines."""

    def __init__(self, picture: Picture) -> None:
        self.waiting: Counter[str] = Counter()
        """At gateways, by model; the key's id is `<gateway>/<model>`."""
        self._seeds: dict[str, list[Seed]] = {}
        for key, demand in picture.of(Demand).items():
            self.waiting[key.partition("/")[2]] += demand.waiting
        for key, seed in picture.of(Seed).items():  # a seed's id is `<engine>/<fingerprint>`
            self._seeds.setdefault(key.rpartition("/")[0], []).append(seed)

    def stream(self, engine: str) -> Stream | None:
        """None: it is not fetching its weights just now."""
        mine = self._seeds.get(engine, [])
        if not any(seed.source and not seed.whole for seed in mine):
            return None
        sources = sorted({seed.source for seed in mine if seed.source})
        return Stream(sum(seed.have for seed in mine), sum(seed.total for seed in mine), ", ".join(sources))


def _model(picture: Picture, engine: str, spec: Spec, wake: Wake | None, beside: _Beside) -> ModelView:
    residency, load = picture.of(Residency).get(engine), picture.of(Load).get(engine) or Load()
    policy = picture.of(Policy).get(spec.model) or Policy()
    return ModelView(
        model=spec.model,
        engine=engine,
        phase=residency.phase if residency else Phase.STOPPED,
        devices=spec.devices,
        bytes=spec.footprint.total * len(spec.devices),
        running=load.running,
        waiting=load.waiting + beside.waiting[spec.model],
        pinned=bool(policy.pin),
        drained=policy.drained,
        wake=wake,
        error=residency.error if residency else "",
        stream=beside.stream(engine),
        ttft=load.ttft,
        master=sum(spec.footprint.weights for device in spec.devices if spec.digest_on(device)),
    )


def _asleep(picture: Picture, beside: _Beside) -> list[ModelView]:
    """Engines that are known by their supervisor's word alone; a process's id is `<node>/<engine>`."""
    named = {name.partition("/")[2]: process for name, process in picture.of(Process).items()}
    return [
        ModelView(
            model=process.model,
            engine=engine,
            phase=process.life,
            devices=process.devices,
            bytes=0,
            running=0,
            waiting=beside.waiting[process.model],
            error=process.error,
        )
        for engine, process in named.items()
        if engine not in picture.of(Spec)
    ]


def _sum(parts: Sequence[Bytes]) -> Bytes:
    return Bytes(*(sum(getattr(part, kind) for part in parts) for kind in Bytes.__struct_fields__))


def _doubt(led: bool, silent_s: float | None) -> str:
    if silent_s is None:
        return "etcd has not answered yet"
    if silent_s < SILENCE_S:
        return ""
    return f"nothing heard for {silent_s:.0f} s: " + ("etcd is away, or the leader" if led else "nobody leads")
