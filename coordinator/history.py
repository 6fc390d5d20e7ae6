"""What has happened lately, as this process saw it: who held device memory when, and how long each switch took.

Fed by the loop that runs the scheduler, read by the admin API and the metrics; bounded rings, gone with the process.
Only a leader knows of switches, because it gives the orders; memory is seen by all.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from coordinator.core.commands import Command, Direct, Grant, Reclaim
from coordinator.core.events import (
    Changed,
    DemandSeen,
    DeviceSeen,
    Event,
    Fact,
    Granted,
    GrantRefused,
    Listed,
    LoadSeen,
    ResidencySeen,
    SpecSeen,
)
from coordinator.core.model import Bytes, Device, Order, Phase, Residency, Spec, Step

SAMPLES = 4096
SWITCHES = 1024
TTFTS = 256
PHASES = {
    "enter": "enter",
    "map": "map",
    "copy": "copy",
    "fetch": "copy",
    "device": "copy",
    "load": "copy",
    "kv": "copy",
    "recall": "map",
    "check": "warmup",
    "resume": "warmup",
    "seal": "warmup",
}
"""An engine's own steps of a restore, as parts of a wake; what else it reports is `other`."""
OFFLOAD_STEPS = frozenset({"drain", "enter", "master", "still", "save_kv", "unmap"})
"""An engine's own steps of an offload (docs/operations.md); what else it reports is `other`."""
KINDS = Bytes.__struct_fields__


class Sample(msgspec.Struct, frozen=True):
    """A device's memory from `at` (Unix time) on: bytes by kind, and of each model all its kinds together."""

    at: float
    device: str
    capacity: int
    kinds: Bytes
    models: dict[str, int]


class Switch(msgspec.Struct, frozen=True):
    """One order that an engine has answered. Seconds.

    `path` of a restore: `cold` from a start, `warm` from the host's copy, `hot` from pages that still held it.
    `seconds`: from the transaction to the answer. `waited`: before it, since the first request or ask. `phases` of a
    restore: queue, evict and decision before the transaction is answered, then the engine's own; of an offload, the
    engine's. `bytes` were copied back to the device, or out of it; of those that went out `kv` were saved KV."""

    at: float
    model: str
    engine: str
    devices: tuple[str, ...]
    order: Order
    seconds: float
    path: str = ""
    bytes: int = 0
    waited: float = 0.0
    phases: tuple[Step, ...] = ()
    error: str = ""
    kv: int = 0


class Ttft(msgspec.Struct, frozen=True):
    """Seconds to the first byte: median and 95th percentile of the newest `count` requests."""

    count: int
    p50: float
    p95: float


Noted = Sample | Switch


class _Sent(msgspec.Struct):
    """An order on its way: when it was sent, what came before, and when its transaction was answered."""

    order: Order
    before: tuple[Step, ...]
    sent: float
    revision: int = 0
    granted: float = 0.0


class History:
    """`unix_time` dates what people see; durations come from `now`, the loop's monotonic clock."""

    def __init__(self, unix_time: Callable[[], float] = time.time) -> None:
        self._unix_time = unix_time
        self.samples: deque[Sample] = deque(maxlen=SAMPLES)
        self.switches: deque[Switch] = deque(maxlen=SWITCHES)
        self.devices: dict[str, Device] = {}
        self._specs: dict[str, Spec] = {}
        self._phases: dict[str, Phase] = {}
        self._sent: dict[str, _Sent] = {}
        self._since: dict[str, dict[str, float]] = {}
        """By model and by who says that requests wait: since when."""
        self._ttfts: dict[str, deque[float]] = {}
        self._evicting: dict[str, float] = {}
        """Since when room is made for a model."""

    def model_of(self, engine: str) -> str:
        """Empty: it is not known."""
        spec = self._specs.get(engine)
        return spec.model if spec is not None else ""

    def answered(self, model: str, seconds: float) -> None:
        """A request got the first byte of its answer `seconds` after it came."""
        self._ttfts.setdefault(model, deque(maxlen=TTFTS)).append(seconds)

    @property
    def ttfts(self) -> dict[str, Ttft]:
        """Of each model's newest requests at this gateway."""
        return {model: _quantiles(sorted(seen)) for model, seen in self._ttfts.items()}

    def ordered(self, command: Command, now: float) -> None:
        """The scheduler has decided; the transaction is about to be sent."""
        if not isinstance(command, Grant | Reclaim):
            return
        decision = command.decision
        if decision.order is not Order.RESTORE:
            if decision.wanted:
                self._evicting.setdefault(decision.wanted, now)
            if decision.order is Order.OFFLOAD:
                self._sent[decision.engine] = _Sent(Order.OFFLOAD, (), now)
            return
        model = self.model_of(decision.engine)
        evicting = self._evicting.pop(model, now)
        since = min([*self._since.get(model, {}).values(), evicting])
        before = (Step("queue", evicting - since), Step("evict", now - evicting))
        self._sent[decision.engine] = _Sent(Order.RESTORE, before, now)

    def decided(self, command: Grant | Reclaim | Direct, outcome: Granted | GrantRefused, now: float) -> None:
        """The transaction is answered."""
        engine = command.decision.engine
        sent = self._sent.get(engine)
        if sent is None or not isinstance(command, Grant):
            return
        if isinstance(outcome, Granted):
            sent.revision, sent.granted = outcome.revision, now
        else:
            del self._sent[engine]

    def saw(self, event: Event, now: float) -> list[Noted]:
        """Everything that went through the loop; returns what came of it that is worth a note."""
        if isinstance(event, Listed):
            self._specs.clear()
            self._phases.clear()
            self.devices.clear()
        if isinstance(event, DemandSeen):
            self._count(event.model, event.gateway, event.demand.waiting if event.demand is not None else 0, now)
        if not isinstance(event, Listed | Changed):
            return []
        return self._note(event.facts, now)

    def _note(self, facts: Iterable[Fact], now: float) -> list[Noted]:
        noted: list[Noted] = []
        for fact in facts:
            match fact:
                case SpecSeen():
                    self._registered(fact)
                case DemandSeen():
                    waiting = fact.demand.waiting if fact.demand is not None else 0
                    self._count(fact.model, fact.gateway, waiting, now)
                case LoadSeen() if fact.load is not None:
                    self._count(self.model_of(fact.engine), fact.engine, fact.load.waiting, now)
                case DeviceSeen():
                    noted += self._held(fact)
                case ResidencySeen() if fact.residency is not None:
                    noted += self._answered(fact.engine, fact.residency, now)
                case _:
                    pass
        self.samples.extend(each for each in noted if isinstance(each, Sample))
        self.switches.extend(each for each in noted if isinstance(each, Switch))
        return noted

    def _registered(self, fact: SpecSeen) -> None:
        if fact.spec is None:
            self._specs.pop(fact.engine, None)
            self._phases.pop(fact.engine, None)
            self._sent.pop(fact.engine, None)
        else:
            self._specs[fact.engine] = fact.spec

    def _count(self, model: str, where: str, waiting: int, now: float) -> None:
        """Since when requests wait for `model`."""
        places = self._since.setdefault(model, {})
        if waiting:
            places.setdefault(where, now)
        else:
            places.pop(where, None)
        if not places:
            del self._since[model]

    def _held(self, fact: DeviceSeen) -> list[Sample]:
        if fact.state is None:
            self.devices.pop(fact.device, None)
            return []
        before, self.devices[fact.device] = self.devices.get(fact.device), fact.state
        if before is not None and (before.owners, before.capacity) == (fact.state.owners, fact.state.capacity):
            return []
        return [self._sample(fact.device, fact.state)]

    def _sample(self, name: str, device: Device) -> Sample:
        models: dict[str, int] = {}
        for owner in device.owners:
            model = self.model_of(owner.holder.engine) or owner.holder.engine
            models[model] = models.get(model, 0) + owner.bytes.total
        kinds = Bytes(*(sum(getattr(owner.bytes, kind) for owner in device.owners) for kind in KINDS))
        return Sample(self._unix_time(), name, device.capacity, kinds, models)

    def _answered(self, engine: str, residency: Residency, now: float) -> list[Switch]:
        """An operation ends when the engine answers under its fence; the answer carries the steps."""
        before, self._phases[engine] = self._phases.get(engine), residency.phase
        if residency.busy:  # it is under way: what it was before counts
            self._phases[engine] = before or residency.phase
        sent = self._sent.get(engine)
        if sent is None or residency.busy or residency.fence is None or residency.fence.revision != sent.revision:
            return []
        del self._sent[engine]
        return [self._switch(engine, residency, before, sent, now)]

    def _switch(self, engine: str, residency: Residency, before: Phase | None, sent: _Sent, now: float) -> Switch:
        spec = self._specs.get(engine)
        restored = sent.order is Order.RESTORE and residency.phase is Phase.RESIDENT
        waited = sum(step.seconds for step in sent.before)
        return Switch(
            at=self._unix_time(),
            model=self.model_of(engine),
            engine=engine,
            devices=spec.devices if spec is not None else (),
            order=sent.order,
            seconds=now - sent.granted,
            path=_path(before, residency) if restored else "",
            bytes=residency.restored if sent.order is Order.RESTORE else residency.kv_saved + residency.d2h,
            kv=0 if sent.order is Order.RESTORE else residency.kv_saved,
            waited=waited,
            phases=_phases(sent, residency) if restored else _steps(residency),
            error=residency.error,
        )


def _quantiles(seen: list[float]) -> Ttft:
    """Nearest rank, of a sorted list that is not empty."""
    return Ttft(len(seen), *(seen[min(len(seen) - 1, int(len(seen) * share))] for share in (0.5, 0.95)))


def _path(before: Phase | None, residency: Residency) -> str:
    if before is Phase.STARTING:
        return "cold"
    if any(step.name == "fetch" for step in residency.steps):
        return "warm"  # from another engine
    copied = residency.restored and residency.restored >= residency.held.weights
    return "warm" if copied and not residency.joined else "hot"


def _phases(sent: _Sent, residency: Residency) -> tuple[Step, ...]:
    """The coordinator's part, then the engine's, by what it is for."""
    own = _summed((PHASES.get(step.name, "other"), step.seconds) for step in residency.steps)
    return (*sent.before, Step("decision", sent.granted - sent.sent), *own)


def _steps(residency: Residency) -> tuple[Step, ...]:
    """Of an offload, or of what went wrong."""
    named = ((step.name if step.name in OFFLOAD_STEPS else "other", step.seconds) for step in residency.steps)
    return _summed(named)


def _summed(steps: Iterable[tuple[str, float]]) -> tuple[Step, ...]:
    sums: dict[str, float] = {}
    for name, seconds in steps:
        sums[name] = sums.get(name, 0.0) + seconds
    return tuple(Step(name, seconds) for name, seconds in sums.items())
