"""Who is in the queue: a model that is wanted and not served by any of its engines; an engine that has not started yet;
and, where a model has several engines, one that went away with requests inside, which no other engine can serve."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from coordinator.core.demand import Queue, Waiter
from coordinator.core.entries import EngineEntry
from coordinator.core.model import ModelId, Phase
from coordinator.core.standing import COMING, Standing
from coordinator.core.victims import World


def inside(engine: EngineEntry) -> int:
    """Requests that only this engine can end: it runs them, or holds them at its gate (also those that it froze)."""
    return engine.load.running + engine.load.waiting


def wanted(world: World, model: ModelId) -> int:
    """Requests that wait for any engine of `model`: at gateways (a drained model takes none of them, nor one whose
    processes are to end), and inside its engine, if it has only one."""
    engines = world.ledger.engines_of(model)
    own = inside(engines[0]) if len(engines) == 1 else 0
    closed = world.models.of(model).drained or not any(world.open(engine) for engine in engines)
    return own if closed else own + world.demand.waiting(model)


def takers(world: World, model: ModelId) -> list[EngineEntry]:
    """Engines for who waits for any engine of `model`, in order of id: its only one, or those of several whose
    processes are not to end. One that only ends what it has holds none of the others back."""
    engines = world.ledger.engines_of(model)
    return engines if len(engines) == 1 else [engine for engine in engines if world.open(engine)]


class Attendance:
    """One model's places in the queue."""

    def __init__(self, world: World, queue: Queue, model: ModelId) -> None:
        self._world = world
        self._queue = queue
        self._model = model
        self._now = world.now
        self._engines = world.ledger.engines_of(model)
        self._takers = takers(world, model)
        self._stands = {engine.id: world.stand(engine) for engine in self._engines}

    def update(self, *, woken: bool) -> float:
        """Enter and leave as things stand. Returns when to look again though nothing happens (monotonic seconds).
        `woken`: an operator asked for the model."""
        for waiter in self._queue.of(self._model):
            if waiter.engine is not None and waiter.engine not in self._stands:
                self._queue.leave(self._model, waiter.engine)
        since = self._place_of_model(asked=woken or wanted(self._world, self._model) > 0)
        for engine in self._engines:
            self._place_of(engine, since)
        return min((at.until for at in self._stands.values()), default=float("inf"))

    def _place_of_model(self, *, asked: bool) -> float | None:
        """Kept while a restore is under way, so that one that fails does not cost it. Returns since when it waits."""
        since = self._queue.since(self._model)
        coming = since is not None and self._any(COMING)
        if not self._takers or self._any({Standing.SERVING}) or not (asked or coming):
            self._queue.leave(self._model)
            return None
        since = self._now if since is None else since
        devices = tuple(sorted({device for engine in self._takers for device in engine.devices}))
        tie = self._tie(min(engine.spec_revision for engine in self._takers), "")
        self._queue.enter(Waiter(self._model, None, since, since, tie, devices))
        return since

    def _place_of(self, engine: EngineEntry, model_since: float | None) -> None:
        """Of an engine itself. Requests that wait for its model make a start-up as urgent as they are."""
        since = due = self._engine_since(engine)
        if since is None or due is None:
            self._queue.leave(self._model, engine.id)
            return
        if engine.phase is Phase.STARTING:
            due = since + self._world.limits.startup_delay_s
            due = due if model_since is None else min(due, max(model_since, since))
        tie = self._tie(engine.spec_revision, engine.id)
        self._queue.enter(Waiter(self._model, engine.id, since, due, tie, engine.devices))

    def _engine_since(self, engine: EngineEntry) -> float | None:
        """Since when it waits by itself: to start, or, among several, to end what only it can end."""
        if engine.phase is Phase.STARTING:
            return engine.first_seen
        since = self._queue.since(self._model, engine.id)
        standing = self._stands[engine.id].standing
        if len(self._engines) == 1 or standing is Standing.SERVING:
            return None
        if inside(engine):
            return self._now if since is None else since
        return since if standing in COMING else None

    def _any(self, standings: AbstractSet[Standing]) -> bool:
        return any(self._stands[engine.id].standing in standings for engine in self._takers)

    def _tie(self, revision: int, engine: str) -> tuple[int, int, str]:
        """The higher priority first, then the older spec."""
        return (-self._world.models.of(self._model).priority, revision, engine)
