"""What operators asked for and has not happened yet: to wake a model, to send its engines to sleep. Once each."""

from __future__ import annotations

from coordinator.core.entries import EngineEntry
from coordinator.core.model import EngineId, Holder, ModelId


class Asks:
    """Open asks, each with who asked."""

    def __init__(self) -> None:
        self._wake: dict[ModelId, str] = {}
        self._sleep: dict[EngineId, tuple[Holder, str]] = {}

    def wake(self, model: ModelId, by: str, engines: list[EngineEntry]) -> None:
        """Restore the model; whatever was asked of it before is off."""
        self._wake[model] = by
        for engine in engines:
            self._sleep.pop(engine.id, None)

    def sleep(self, model: ModelId, by: str, engines: list[EngineEntry]) -> None:
        """Offload `engines`, those of the model that are here or on their way."""
        self._wake.pop(model, None)
        for engine in engines:
            if engine.holder is not None:
                self._sleep[engine.id] = (engine.holder, by)

    def wakes(self, model: ModelId) -> str | None:
        """Who asked for the model; None: nobody."""
        return self._wake.get(model)

    def sleeps(self, engine: EngineEntry) -> str | None:
        """Who asked this very process to sleep; None: nobody."""
        asked = self._sleep.get(engine.id)
        return asked[1] if asked is not None and asked[0] == engine.holder else None

    def woken(self, model: ModelId) -> None:
        self._wake.pop(model, None)

    def refused(self, model: ModelId) -> None:
        """It cannot be had: the ask is answered by the reason that `view` shows."""
        self._wake.pop(model, None)

    def asleep(self, engine: EngineEntry) -> None:
        self._sleep.pop(engine.id, None)

    def clear(self) -> None:
        self._wake.clear()
        self._sleep.clear()
