"""Who is in the queue: a model that is wanted and not served, and every engine that has not started yet."""

from __future__ import annotations

from coordinator.core.demand import Queue, Waiter
from coordinator.core.entries import EngineEntry
from coordinator.core.model import DeviceId, ModelId, Phase
from coordinator.core.standing import COMING, Standing, stand
from coordinator.core.victims import World


def wanted(world: World, model: ModelId, now: float) -> int:
    """Requests that its return would serve: those at gateways and those in its engines. A drained model returns only
    for what is in its engines already: frozen requests count as waiting there."""
    inside = sum(engine.load.running + engine.load.waiting for engine in world.ledger.engines_of(model))
    return inside if world.models.of(model).drained else inside + world.demand.waiting(model)


def attend(world: World, queue: Queue, model: ModelId, now: float, *, woken: bool) -> float:
    """Put `model` and its start-ups into the queue, or take them out. Returns when to look again though nothing
    happens (monotonic seconds). `woken`: an operator asked for it."""
    engines = list(world.ledger.engines_of(model))
    stands = [stand(world.ledger, engine, now, world.limits) for engine in engines]
    served = any(at.standing is Standing.SERVING for at in stands)
    coming = any(at.standing in COMING for at in stands)
    since = queue.since(model)
    asked = bool(engines) and (woken or wanted(world, model, now) > 0)
    if not served and (asked or (coming and since is not None)):
        since = now if since is None else since
        queue.enter(_waiter(world, model, engines, since))
    else:
        queue.leave(model)
        since = None
    _start_ups(world, queue, model, engines, since)
    return min((at.until for at in stands), default=float("inf"))


def _waiter(world: World, model: ModelId, engines: list[EngineEntry], since: float) -> Waiter:
    devices = sorted({device for engine in engines for device in engine.devices})
    first = min(engine.spec_revision for engine in engines)
    return Waiter(model, None, since, since, _tie(world, model, first, ""), tuple(devices))


def _start_ups(world: World, queue: Queue, model: ModelId, engines: list[EngineEntry], since: float | None) -> None:
    """A start-up is demand by itself; requests that wait for its model make it as urgent as they are."""
    starting = {engine.id: engine for engine in engines if engine.phase is Phase.STARTING}
    for waiter in queue.of(model):
        if waiter.engine is not None and waiter.engine not in starting:
            queue.leave(model, waiter.engine)
    for engine in starting.values():
        due = engine.first_seen + world.limits.startup_delay_s
        due = due if since is None else min(due, max(since, engine.first_seen))
        devices: tuple[DeviceId, ...] = engine.devices
        tie = _tie(world, model, engine.spec_revision, engine.id)
        queue.enter(Waiter(model, engine.id, engine.first_seen, due, tie, devices))


def _tie(world: World, model: ModelId, revision: int, engine: str) -> tuple[int, int, str]:
    return (-world.models.of(model).priority, revision, engine)
