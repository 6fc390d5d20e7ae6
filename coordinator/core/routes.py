"""Where requests of each model may go: told whenever it changes, by leader and standby alike.

An engine is an endpoint while resident, and from the moment its restore is granted (its own gate holds what comes
early), until an offload is granted or it is lost. A start-up is no endpoint before it is resident.
"""

from __future__ import annotations

from coordinator.core.commands import Endpoint, Route
from coordinator.core.model import ModelId
from coordinator.core.standing import ROUTABLE
from coordinator.core.victims import World


class Routes:
    """Remembers what was told."""

    def __init__(self) -> None:
        self._told: dict[ModelId, Route] = {}

    def endpoints(self, model: ModelId) -> tuple[Endpoint, ...]:
        told = self._told.get(model)
        return told.endpoints if told is not None else ()

    def update(self, world: World, model: ModelId) -> Route | None:
        """The route of `model`, if it is another than was told."""
        route = route_of(world, model)
        if route.gone:
            return route if self._told.pop(model, None) is not None else None
        if self._told.get(model) == route:
            return None
        self._told[model] = route
        return route


def route_of(world: World, model: ModelId) -> Route:
    """Where requests of `model` may go as things stand. A drained model takes nothing new."""
    engines = world.ledger.engines_of(model)
    specs = [engine.spec for engine in engines if engine.spec is not None]
    open_ = [] if world.models.of(model).drained else [engine for engine in engines if world.open(engine)]
    endpoints = [
        Endpoint(engine.id, engine.spec.url)
        for engine in open_
        if engine.spec is not None and world.stand(engine).standing in ROUTABLE
    ]
    aliases = sorted({alias for spec in specs for alias in spec.aliases})
    return Route(model, tuple(sorted(endpoints)), tuple(aliases), gone=not engines)
