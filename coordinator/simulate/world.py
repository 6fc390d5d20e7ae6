"""The real scheduler in a simulated fleet: gateway, etcd, daemons and engines that never fail, in virtual time.

What is decided, and when, is the scheduler's alone: it gets the events that it gets in life (specs, device keys,
residencies, loads, demand, answers to its transactions) with the delays of `Delays`, and its commands are carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from coordinator.core.commands import Command, Grant, Reclaim, Refuse, Route
from coordinator.core.events import (
    Changed,
    DemandSeen,
    DeviceSeen,
    EpochSeen,
    Event,
    Fact,
    Granted,
    LeadershipGained,
    Listed,
    LoadSeen,
    ResidencySeen,
    SpecSeen,
    Tick,
)
from coordinator.core.model import (
    Bytes,
    Decision,
    Demand,
    Device,
    DeviceId,
    EngineId,
    Epoch,
    Fence,
    Holder,
    Load,
    ModelId,
    Order,
    Owner,
    Phase,
    Residency,
    Spec,
    Step,
)
from coordinator.core.policy import EvictionPolicy
from coordinator.core.scheduler import Scheduler
from coordinator.errors import VnpuError
from coordinator.simulate.clock import Clock
from coordinator.simulate.engine import Engine, Job
from coordinator.simulate.fleet import Fleet
from coordinator.simulate.remains import Remains
from coordinator.simulate.trace import Request

EPOCH = Epoch(id="simulated")
SETTLE_S = 3600.0
"""After the last arrival so long at most, then what still waits is counted as unanswered."""


class Delays(msgspec.Struct, frozen=True):
    """Seconds: a transaction's answer; from a write to whoever watches it."""

    transaction: float = 0.001
    watch: float = 0.001


DELAYS = Delays()


class Move(msgspec.Struct, frozen=True):
    """One operation. `waited`: seconds of it during which somebody waited for it, or, where nobody had asked for it,
    waited for the device meanwhile."""

    at: float
    model: str
    order: Order
    seconds: float
    bytes: int
    waited: float
    predicted: bool = False


class Impossible(VnpuError):
    """The scheduler ordered something that cannot come up in a fleet without faults: a defect."""


class World:
    """One run: make it, `run` it once, read `jobs`, `moves`, `served`, `decisions`."""

    def __init__(
        self,
        fleet: Fleet,
        requests: Iterable[Request],
        policy: EvictionPolicy,
        *,
        shadow: EvictionPolicy | None = None,
        predict: bool = False,
        delays: Delays = DELAYS,
        remains: bool = False,
    ) -> None:
        """`remains`: pages that nobody has needed since a model left hold its weights still, and are not copied when it
        comes back, as node daemons have it. Not the optimum's world: that copies all."""
        self.fleet = fleet
        self.clock = Clock()
        self.jobs: list[Job] = []
        self.moves: list[Move] = []
        self.decisions: list[Decision] = []
        self.served: list[str] = []
        """Models in the order in which requests got their first token."""
        self._requests = sorted(requests, key=lambda request: request.t)
        self._delays = delays
        settings = {ModelId(name): model.settings for name, model in fleet.models.items()}
        self._scheduler = Scheduler(models=settings, policy=policy, shadow=shadow, predict=predict)
        self._revision = 1
        self._ticking = float("inf")
        self._engines = {name: self._engine(name) for name in fleet.models}
        self._owners: dict[str, dict[str, Owner]] = {device.id: {} for device in fleet.devices}
        self._remains = {device.id: Remains(device.capacity // device.chunk) for device in fleet.devices if remains}
        self._closed: dict[str, int] = {device.id: 0 for device in fleet.devices}
        self._routes: dict[str, bool] = {}
        self._waiting: dict[str, list[Job]] = {name: [] for name in fleet.models}

    def run(self, progress: Callable[[int], None] | None = None) -> None:
        """Until all are answered, or `SETTLE_S` after the last arrival. `progress` is told after each arrival."""
        self._begin()
        for request in self._requests:
            self.clock.at(request.t, lambda request=request: self._arrive(request))  # type: ignore[misc]
        end = self._requests[-1].t + SETTLE_S if self._requests else 0.0
        told = 0
        while self.clock.next() <= end and not self._over():
            self.clock.step()
            if progress is not None and len(self.jobs) > told:
                told = len(self.jobs)
                progress(told)

    def _over(self) -> bool:
        return len(self.jobs) == len(self._requests) and all(job.ended is not None or job.refused for job in self.jobs)

    @property
    def predicted(self) -> int:
        """Restores that nobody had asked for."""
        return self._scheduler.predictions[0]

    @property
    def regretted(self) -> int:
        """Those that left again unused."""
        return self._scheduler.predictions[1]

    # ---- the scheduler and its etcd

    def _begin(self) -> None:
        facts: list[Fact] = [EpochSeen(EPOCH, 1)]
        facts += [self._device(device.id) for device in self.fleet.devices]
        for name in self.fleet.models:
            facts += [self._spec(name), ResidencySeen(EngineId(name), self._residency(name, Phase.OFFLOADED), 1)]
        self._handle(Listed(tuple(facts), self._revision))
        self._handle(LeadershipGained("simulated", 1))

    def _handle(self, event: Event) -> None:
        for command in self._scheduler.handle(event, self.clock.now):
            self._perform(command)
        due = self._scheduler.deadline()
        if due is not None and (due < self._ticking or self._ticking <= self.clock.now):
            self._ticking = due
            self.clock.at(due, self._tick)

    def _tick(self) -> None:
        if self.clock.now >= self._ticking:
            self._ticking = float("inf")
            self._handle(Tick())

    def _change(self, *facts: Fact) -> None:
        """One revision, seen after the watch's delay."""
        self._revision += 1
        event = Changed(facts, self._revision)
        self.clock.after(self._delays.watch, lambda: self._handle(event))

    def _perform(self, command: Command) -> None:
        match command:
            case Route():
                self._route(command)
            case Refuse():
                self._refuse(command)
            case Grant():
                self.clock.after(self._delays.transaction, lambda: self._grant(command))
            case Reclaim():
                raise Impossible(f"{command.holder.engine} is reclaimed: {command.decision.cause}")

    def _device(self, id_: str) -> DeviceSeen:
        device = self.fleet.device(id_)
        state = Device(
            driver="simulated",
            capacity=device.capacity,
            chunk=device.chunk,
            epoch=EPOCH.id,
            closed=self._closed[id_],
            owners=tuple(self._owners[id_].values()),
        )
        return DeviceSeen(DeviceId(id_), state, self._revision)

    def _spec(self, name: str) -> SpecSeen:
        model = self.fleet.models[name]
        spec = Spec(
            holder=Holder(name, "1"),
            model=name,
            url=f"http://{name}",
            devices=tuple(model.devices),
            pid=1,
            boot_id="simulated",
            footprint=Bytes(weights=model.weights, kv=model.kv),
            measured=True,
        )
        return SpecSeen(EngineId(name), spec, 1, lease=1)

    def _residency(self, name: str, phase: Phase, revision: int = 0, seconds: float = 0.0, still: int = 0) -> Residency:
        """`still`: bytes of weights that were not copied."""
        model = self.fleet.models[name]
        restored = phase is Phase.RESIDENT
        ranks = len(model.devices)
        kv = model.kv if model.saved is None else model.saved
        return Residency(
            holder=Holder(name, "1"),
            phase=phase,
            fence=Fence(EPOCH.id, revision) if revision else None,
            steps=(Step("copy", seconds),) if revision else (),
            restored=max(0, (model.weights + kv) * ranks - still) if restored else 0,
            kv_saved=0 if restored else kv * ranks,
        )

    # ---- gateway

    def _arrive(self, request: Request) -> None:
        engine = self._engines[request.model]
        job = Job(request, cold=not engine.resident, order=len(self.jobs))
        self.jobs.append(job)
        if self._routed(request.model):
            self._admit(job)
            return
        self._waiting[request.model].append(job)
        self._post(request.model)

    def _routed(self, model: str) -> bool:
        return self._routes.get(model, False)

    def _post(self, model: str) -> None:
        waiting = len(self._waiting[model])
        self._handle(DemandSeen("simulated", ModelId(model), Demand(waiting=waiting) if waiting else None))

    def _route(self, route: Route) -> None:
        model = str(route.model)
        self._routes[model] = bool(route.endpoints)
        if route.endpoints and self._waiting[model]:
            self.clock.after(0.0, lambda: self._release(model))

    def _release(self, model: str) -> None:
        held, self._waiting[model] = self._waiting[model], []
        for job in held:
            self._admit(job)
        if held:
            self._post(model)

    def _refuse(self, refuse: Refuse) -> None:
        model = str(refuse.model)
        held, self._waiting[model] = self._waiting[model], []
        for job in held:
            job.refused = refuse.reason
        self.clock.after(0.0, lambda: self._post(model))

    # ---- engines and daemons

    def _engine(self, name: str) -> Engine:
        return Engine(self.clock, self.fleet.models[name], lambda: self._load(name), self._first)

    def _first(self, job: Job) -> None:
        self.served.append(job.request.model)

    def _admit(self, job: Job) -> None:
        engine = self._engines[job.request.model]
        engine.admit(job)
        if engine.inside == 1:
            self._load(job.request.model)

    def _load(self, name: str) -> None:
        """Its load key: when work begins and when it ends."""
        load = Load(running=self._engines[name].inside)
        self._change(LoadSeen(EngineId(name), load, self._revision + 1))

    def _grant(self, grant: Grant) -> None:
        self._revision += 1
        revision = self._revision
        self.decisions.append(msgspec.structs.replace(grant.decision, at=self.clock.now))
        self._handle(Granted(grant.id, revision))
        self.clock.after(self._delays.watch, lambda: self._operate(grant, revision))

    def _operate(self, grant: Grant, revision: int) -> None:
        name = grant.holder.engine
        restore = grant.order is Order.RESTORE
        still = self._still(name) if restore else {}
        seconds = self.fleet.restore_s(name, still) if restore else self.fleet.offload_s(name)
        if not restore:
            self._engines[name].freeze()
        bytes_ = sum(self.fleet.pages(name, d) - still.get(d, 0) for d in self.fleet.models[name].devices)
        moved = bytes_ if restore else self.fleet.models[name].kv * len(self.fleet.models[name].devices)
        asked = bool(self._waiting[name]) or self._engines[name].inside > 0
        move = Move(self.clock.now, name, grant.order, seconds, moved, 0.0, predicted=restore and not asked)
        self.clock.after(seconds, lambda: self._operated(grant, revision, move, sum(still.values())))

    def _still(self, name: str) -> dict[str, int]:
        """It takes its pages: by device, bytes of weights that lie in them already."""
        fleet = self.fleet
        return {
            id_: remains.take(name, *fleet.chunks(name, id_)) * fleet.device(id_).chunk
            for id_, remains in self._remains.items()
            if id_ in fleet.models[name].devices
        }

    def _operated(self, grant: Grant, revision: int, move: Move, still: int) -> None:
        name, seconds = move.model, move.seconds
        restore = grant.order is Order.RESTORE
        waiting = self._neighbours(name) if move.predicted else [name]
        waited = max(0.0, self.clock.now - max(move.at, min(self._oldest(each) for each in waiting)))
        self.moves.append(msgspec.structs.replace(move, waited=waited))
        for seat in grant.seats:
            self._closed[seat.device] = revision
            if restore:
                model, chunk = self.fleet.models[name], self.fleet.device(seat.device).chunk
                held = Bytes(weights=-(-model.weights // chunk) * chunk, kv=-(-model.kv // chunk) * chunk)
                self._owners[seat.device][name] = Owner(holder=grant.holder, bytes=held)
            else:
                self._owners[seat.device].pop(name, None)
                if seat.device in self._remains:
                    self._remains[seat.device].leave(name, *self.fleet.chunks(name, seat.device))
            self._fits(seat.device)
        phase = Phase.RESIDENT if restore else Phase.OFFLOADED
        residency = self._residency(name, phase, revision, seconds, still)
        self._change(
            *(self._device(seat.device) for seat in grant.seats),
            ResidencySeen(EngineId(name), residency, self._revision + 1),
        )
        if restore:
            self._engines[name].resume()

    def _neighbours(self, name: str) -> list[str]:
        """Models of its devices that are not there."""
        devices = set(self.fleet.models[name].devices)
        return [
            other for other, model in self.fleet.models.items() if devices & set(model.devices) and self._away(other)
        ]

    def _away(self, name: str) -> bool:
        return not self._engines[name].resident

    def _oldest(self, name: str) -> float:
        """Since when somebody has waited for it; infinity: nobody does."""
        held = self._waiting[name][:1]
        return min([job.request.t for job in held] + [self._engines[name].oldest])

    def _fits(self, device: str) -> None:
        held = sum(owner.bytes.total for owner in self._owners[device].values())
        if held > self.fleet.device(device).capacity:
            raise Impossible(f"{held} bytes on {device}, which has {self.fleet.device(device).capacity}")
