"""How a newcomer gets its room: it fits, or somebody leaves, or it must wait, or it never will.

A plan is made against a *projection*: what the devices will hold once everybody ahead in the queue has been served. So
one behind may go first when that delays nobody ahead, and nobody ahead can be starved by those behind.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from coordinator.core.entries import EngineEntry
from coordinator.core.model import DeviceId, Holder
from coordinator.core.policy import Wanted
from coordinator.core.room import choose, in_order
from coordinator.core.victims import NEVER, Victim, World, victims
from coordinator.core.words import names, size


class Verdict(IntEnum):
    """In order of preference among the engines that could serve a model."""

    GO = 0
    EVICT = 1
    WAIT = 2
    IMPOSSIBLE = 3


class Plan(msgspec.Struct, frozen=True):
    """`victims` leave first, in this order; `pool` is everyone that was looked at, `missing`
    the bytes that must be freed. `until`: when a waiting plan should
    be made anew though nothing happens. `holds`: it will be served in time, so those behind leave it its room."""

    verdict: Verdict
    engine: EngineEntry
    victims: tuple[Victim, ...] = ()
    pool: tuple[Victim, ...] = ()
    missing: dict[DeviceId, int] = {}
    until: float = NEVER
    why: str = ""
    holds: bool = False

    @property
    def cost(self) -> float:
        """What serving it here takes from others: seconds where the policy knows, else how many must leave."""
        known = [victim.seconds for victim in self.victims if victim.seconds is not None]
        return sum(known) if len(known) == len(self.victims) else float(len(self.victims))


class Projection:
    """What those ahead in the queue will change. `claimed` devices are theirs for the next operation."""

    def __init__(self) -> None:
        self.claimed: set[DeviceId] = set()
        self._extra: dict[DeviceId, int] = {}
        self._doomed: set[Holder] = set()

    def extra(self, device: DeviceId) -> int:
        return self._extra.get(device, 0)

    def doomed(self, holder: Holder) -> bool:
        return holder in self._doomed

    def reserve(self, world: World, plan: Plan) -> None:
        """Those behind see the newcomer in its place and its victims gone."""
        for device in plan.engine.devices:
            self._extra[device] = self.extra(device) + world.ledger.need(plan.engine, device)
        for victim in plan.victims:
            self._doomed.add(victim.holder)
            for device, held in victim.bytes.items():
                self._extra[device] = self.extra(device) - held


def plan(world: World, wanted: Wanted, engine: EngineEntry, projection: Projection, now: float) -> Plan:
    """How `engine` could become resident for `wanted`."""
    absent = [device for device in engine.devices if not world.ledger.device(device).present(world.ledger.epoch)]
    if absent:
        return Plan(Verdict.WAIT, engine, why=world.ledger.blocked(absent[0]))
    pool = victims(world, wanted, engine.holder, engine.devices, now)
    hopeless = _hopeless(world, engine, pool)
    if hopeless:
        return Plan(Verdict.IMPOSSIBLE, engine, pool=tuple(pool), why=hopeless)
    missing = {device: _missing(world, engine, device) for device in engine.devices}
    ahead = {device: missing[device] + projection.extra(device) for device in engine.devices}
    if all(bytes_ <= 0 for bytes_ in ahead.values()):
        go = all(bytes_ <= 0 for bytes_ in missing.values())
        return Plan(Verdict.GO if go else Verdict.WAIT, engine, pool=tuple(pool), why="room is being made", holds=True)
    return _make_room(engine, ahead, [v for v in pool if not v.pinned and not projection.doomed(v.holder)], pool, now)


def _missing(world: World, engine: EngineEntry, device: DeviceId) -> int:
    """Bytes by which it does not fit now; not positive: it fits."""
    state = world.ledger.device(device).state
    capacity = state.capacity if state is not None else 0
    return world.ledger.others(engine, device) + world.ledger.need(engine, device) - capacity


def _hopeless(world: World, engine: EngineEntry, pool: list[Victim]) -> str:
    """Why it does not fit even if everyone left who may; empty: it could."""
    pinned = [victim for victim in pool if victim.pinned]
    for device in engine.devices:
        missing = _missing(world, engine, device) - sum(v.bytes.get(device, 0) for v in pool if not v.pinned)
        if missing <= 0:
            continue
        state = world.ledger.device(device).state
        need = f"{engine.id} needs {size(world.ledger.need(engine, device))} of {device}"
        capacity = size(state.capacity) if state is not None else "nothing"
        if not any(device in victim.bytes for victim in pinned):
            return f"{need}, which has {capacity}"
        held = sum(victim.bytes.get(device, 0) for victim in pinned)
        return f"{need}; pinned {names(v.holder.engine for v in pinned)} hold {size(held)} of its {capacity}"
    return ""


def _make_room(
    engine: EngineEntry, missing: dict[DeviceId, int], free: list[Victim], pool: list[Victim], now: float
) -> Plan:
    ready = choose(missing, [victim for victim in free if victim.not_before <= now])
    if ready is not None:
        return Plan(Verdict.EVICT, engine, ready, tuple(pool), missing=missing, holds=True)
    until = min((victim.not_before for victim in free if victim.not_before > now), default=NEVER)
    later = in_order(missing, sorted(free, key=lambda victim: (victim.not_before, victim.value, victim.holder)))
    if later is None:
        return Plan(Verdict.WAIT, engine, pool=tuple(pool), until=until, why="what is ahead of it needs the room first")
    waits_for = names(victim.holder.engine for victim in later if victim.not_before > now)
    return Plan(
        Verdict.WAIT, engine, later, tuple(pool), until=until, why=f"waits until {waits_for} may leave", holds=True
    )
