"""Whose pages could be taken for a newcomer, with the policy's score and the protocol's conditions."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from coordinator.core.arrivals import Arrivals
from coordinator.core.costs import Costs
from coordinator.core.demand import Demand
from coordinator.core.entries import EngineEntry, chargeable
from coordinator.core.ledger import Ledger
from coordinator.core.model import Bytes, Candidate, DeviceId, EngineId, Holder, ModelId, Order
from coordinator.core.policy import EvictionPolicy, Resident, Wanted
from coordinator.core.predictions import Predictions
from coordinator.core.process import Wish
from coordinator.core.settings import Limits, Models, Settings
from coordinator.core.standing import Stand, stand

NEVER = float("inf")
LOST_FIRST = -1e12
"""Score of lost owners: their pages serve nobody, so they go before any resident."""
LOST_RANK = -1_000_000
MOST_CANDIDATES = 256
"""A decision names at most so many; it is one value in etcd."""


class Victim(msgspec.Struct, frozen=True):
    """An owner whose pages could be taken. `order`: how; `not_before`: monotonic time from which (inf: an event will
    say); `pinned`: never. `rank` and `seconds` are the score's; `resident`: what the policy was told."""

    holder: Holder
    order: Order
    bytes: dict[DeviceId, int]
    value: float
    not_before: float
    why: str
    pinned: bool = False
    rank: int = 0
    seconds: float | None = None
    resident: Resident | None = None

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.holder.engine, self.value, self.why)


class World(msgspec.Struct, frozen=True):
    """What decisions read at `now` (monotonic seconds). One for each event: nothing of it changes while it is read."""

    ledger: Ledger
    demand: Demand
    models: Models
    limits: Limits
    policy: EvictionPolicy
    arrivals: Arrivals
    costs: Costs
    predictions: Predictions
    shadow: EvictionPolicy | None = None
    predict: bool = False
    now: float = 0.0
    stands: dict[EngineId, Stand] = {}
    """Those that were asked for."""

    def stand(self, engine: EngineEntry) -> Stand:
        """Where `engine` stands."""
        found = self.stands.get(engine.id)
        if found is None:
            found = self.stands[engine.id] = stand(self.ledger, engine, self.now, self.limits)
        return found

    def busy(self, engine: EngineEntry) -> bool:
        """Whether it works, or is about to: requests for its model wait at a gateway."""
        if engine.working or engine.model is None:
            return engine.working
        return self.open(engine) and self.demand.waiting(engine.model) > 0

    def open(self, engine: EngineEntry) -> bool:
        """Whether it takes new requests: not once its process is to end."""
        return self.ledger.processes.wish(engine.id) is Wish.RUN

    def settings(self, engine: EngineEntry) -> Settings:
        return self.models.of(engine.model) if engine.model is not None else Settings()


def victims(
    world: World, wanted: Wanted, newcomer: Holder | None, devices: Iterable[DeviceId], now: float
) -> list[Victim]:
    """Every other owner on `devices`, lowest score first."""
    holders = {holder for device in devices for holder in world.ledger.device(device).held if holder != newcomer}
    found = (_victim(world, wanted, holder, now) for holder in sorted(holders))
    return sorted(found, key=lambda victim: (victim.value, victim.holder))


def _victim(world: World, wanted: Wanted, holder: Holder, now: float) -> Victim:
    engine = world.ledger.registered(holder)
    if engine is None or engine.model is None:
        return _lost(world, holder, now)
    taken = {device: _freed(world.ledger, device, holder) for device in world.ledger.places(holder)}
    if world.settings(engine).pin:
        return Victim(holder, Order.OFFLOAD, taken, 0.0, NEVER, "pinned", pinned=True)
    at = world.stand(engine)
    if not at.orderable:
        return Victim(holder, Order.OFFLOAD, taken, 0.0, at.until, at.why or f"it is {at.standing}")
    resident = _resident(world, engine, engine.model, taken, now)
    score = world.policy.score(resident, wanted, now)
    not_before = max(score.not_before, engine.retry_at)
    victim = Victim(holder, Order.OFFLOAD, taken, score.value, not_before, score.why, resident=resident)
    return msgspec.structs.replace(victim, rank=score.rank, seconds=score.seconds)


def _resident(world: World, engine: EngineEntry, model: ModelId, taken: dict[DeviceId, int], now: float) -> Resident:
    busy = world.busy(engine)
    bytes_ = sum(taken.values())
    return Resident(
        engine=engine.id,
        model=model,
        settings=world.settings(engine),
        bytes=bytes_,
        busy=busy,
        resident_since=engine.resident_since,
        active_at=now if busy else engine.active_at,
        restore_s=world.costs.restore_s(engine.id, bytes_),
        offload_s=world.costs.offload_s(engine.id),
        inside=engine.load.running + engine.load.waiting + world.demand.waiting(model),
        habit=world.arrivals.of(model),
        unasked=world.predictions.unused(engine.id),
    )


def _lost(world: World, holder: Holder, now: float) -> Victim:
    """An owner without spec: reclaimed when its pages are needed, once it has been lost for long enough (rule 10)."""
    entries = [world.ledger.device(device) for device in world.ledger.places(holder)]
    taken = {entry.id: chargeable(entry.held.get(holder, Bytes())) for entry in entries}
    if any(entry.dying(holder) for entry in entries):
        return _first(holder, taken, NEVER, "dead, its pages are on their way back")
    since = max((entry.lost_at.get(holder, now) for entry in entries if holder in entry.held), default=now)
    why = f"lost: no lease for {now - since:.1f} s"
    return _first(holder, taken, since + world.limits.lost_s, why)


def _first(holder: Holder, taken: dict[DeviceId, int], not_before: float, why: str) -> Victim:
    return Victim(holder, Order.RECLAIM, taken, LOST_FIRST, not_before, why, rank=LOST_RANK, seconds=0.0)


def rescored(policy: EvictionPolicy, pool: Iterable[Victim], wanted: Wanted, now: float) -> list[Victim]:
    """`pool` as another policy sees it, lowest score first."""
    found = []
    for victim in pool:
        if victim.resident is not None:
            score = policy.score(victim.resident, wanted, now)
            victim = msgspec.structs.replace(victim, value=score.value, rank=score.rank, seconds=score.seconds)
        found.append(victim)
    return sorted(found, key=lambda victim: (victim.value, victim.holder))


def _freed(ledger: Ledger, device: DeviceId, holder: Holder) -> int:
    """What an offload gives back: its overhead stays."""
    held = ledger.device(device).held.get(holder, Bytes())
    return held.weights + held.kv
