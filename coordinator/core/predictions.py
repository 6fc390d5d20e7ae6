"""Who was displaced, who was woken though nobody had asked, and what became of it."""

from __future__ import annotations

from collections import deque

from coordinator.core.entries import EngineEntry
from coordinator.core.model import DeviceId, EngineId

REMEMBERED = 16
"""Displaced engines a device: those that left longer ago are the least likely."""


class Predictions:
    """`woken`: restores that nobody had asked for; `regretted`: those that left again unused."""

    def __init__(self) -> None:
        self._displaced: dict[DeviceId, deque[EngineId]] = {}
        self._unused: set[EngineId] = set()
        self.woken = 0
        self.regretted = 0

    def displaced_from(self, device: DeviceId) -> tuple[EngineId, ...]:
        """Who had to leave it for somebody else, longest ago first."""
        return tuple(self._displaced.get(device, ()))

    def unused(self, engine: EngineId) -> bool:
        """It was woken, and nobody has wanted it yet."""
        return engine in self._unused

    def left(self, engine: EngineEntry) -> None:
        """It was ordered to leave for somebody else."""
        self.forget(engine.id)
        if engine.id in self._unused:
            self._unused.discard(engine.id)
            self.regretted += 1
        if len(engine.devices) == 1:
            self._displaced.setdefault(engine.devices[0], deque(maxlen=REMEMBERED)).append(engine.id)

    def woke(self, engine: EngineId) -> None:
        """It was ordered to return though nobody had asked."""
        self.forget(engine)
        self._unused.add(engine)
        self.woken += 1

    def used(self, engine: EngineId) -> None:
        self._unused.discard(engine)

    def forget(self, engine: EngineId) -> None:
        """It is on its way, or gone, or was asked to sleep."""
        for displaced in self._displaced.values():
            if engine in displaced:
                displaced.remove(engine)
