"""Every decision, as a function of events and time."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.core.commands import Command
from coordinator.core.events import Event
from coordinator.core.model import ModelId
from coordinator.core.policy import EvictionPolicy, LeastRecentlyUsed
from coordinator.core.settings import Limits, Models, Settings
from coordinator.core.view import State


class Scheduler:
    """One way in: `handle`. Times are monotonic seconds; `deadline` says when a `Tick` is wanted."""

    def __init__(
        self,
        defaults: Settings | None = None,
        models: Mapping[ModelId, Settings] | None = None,
        *,
        limits: Limits | None = None,
        policy: EvictionPolicy | None = None,
        next_decision: int = 0,
    ) -> None:
        self._models = Models(defaults or Settings(), dict(models or {}))
        self._limits = limits or Limits()
        self._policy = policy or LeastRecentlyUsed()
        self._next_decision = next_decision

    def handle(self, event: Event, now: float) -> list[Command]:
        return []

    def deadline(self) -> float | None:
        return None

    def settings(self, model: ModelId) -> Settings:
        """How `model` is treated now: configured, and what `policy/<model>` overrides."""
        return self._models.of(model)

    def view(self) -> State:
        return State(leading=False, epoch=None, revision=0)
