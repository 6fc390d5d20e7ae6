"""Predictive wake: who left to make room may come back into memory that nobody needs.

Only right after a restore, into what is left over beside it, one at a time, and only who was displaced for somebody
else: never who went for idleness or because an operator asked. Nobody leaves for it, whoever waits goes first, and a
model that was woken so and is not used has no minimum residency. What it costs is the link for one restore.
"""

from __future__ import annotations

from coordinator.core.entries import EngineEntry
from coordinator.core.model import DeviceId, EngineId
from coordinator.core.plan import Projection, Verdict, plan
from coordinator.core.policies.reuse import reuse
from coordinator.core.policy import Wanted
from coordinator.core.standing import Standing
from coordinator.core.victims import World

HORIZON = 0.5
LEAST = 0.25
"""Below this (see `reuse`) it is not worth the link."""


def next_needed(world: World, device: DeviceId, now: float) -> tuple[EngineEntry, float] | None:
    """Whose return would save most, and how likely it is needed soon; None: nobody fits or is likely."""
    found = [each for id_ in world.predictions.displaced_from(device) if (each := _candidate(world, id_, device, now))]
    if not found:
        return None
    _, engine, likely = max(found, key=lambda each: (each[0], each[1].id))
    return engine, likely


def _candidate(world: World, id_: EngineId, device: DeviceId, now: float) -> tuple[float, EngineEntry, float] | None:
    """(expected seconds saved, the engine, how likely)."""
    engine = world.ledger.engines.get(id_)
    if engine is None or engine.model is None:
        return None
    likely = _likely(world, engine, device, now)
    asked = Wanted(engine.id, engine.model, world.models.of(engine.model), now)
    if likely < LEAST or plan(world, asked, engine, Projection(), now).verdict is not Verdict.GO:
        return None
    return likely * world.costs.restore_s(id_, world.ledger.need(engine, device)), engine, likely


def _likely(world: World, engine: EngineEntry, device: DeviceId, now: float) -> float:
    if engine.model is None or world.models.of(engine.model).drained:
        return 0.0
    habit = world.arrivals.of(engine.model)
    if habit is None or world.stand(engine).standing is not Standing.ASLEEP:
        return 0.0
    around = world.arrivals.around(device, now)
    return reuse(habit, around, len(world.ledger.device(device).held), now, HORIZON)
