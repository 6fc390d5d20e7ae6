"""What the leader has to tell the gateways of other processes: that a model cannot be served, for as long as requests
wait for it there. Its own gateway hears the same without etcd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from coordinator.core.commands import Refuse
from coordinator.core.events import Changed, DemandSeen, Event, Fact, LeadershipLost, Listed
from coordinator.core.model import ModelId, Refusal


class Notices:
    """Fed with every event and every refusal, by the loop that runs the scheduler of gateway `own`; `changed` is called
    when `standing` has changed."""

    def __init__(self, own: str, changed: Callable[[], None]) -> None:
        self._own = own
        self._changed = changed
        self._waiting: dict[ModelId, set[str]] = {}
        """Other gateways where requests wait."""
        self._standing: dict[ModelId, Refusal] = {}

    @property
    def standing(self) -> Mapping[ModelId, Refusal]:
        """What must stand in etcd now."""
        return self._standing

    def refused(self, refuse: Refuse) -> None:
        if refuse.model in self._waiting:
            self._standing[refuse.model] = Refusal(reason=refuse.reason, retry_after_s=max(0.0, refuse.retry_after_s))
            self._changed()

    def saw(self, event: Event) -> None:
        """Where nobody waits any more, everybody has been told."""
        match event:
            case Listed():
                self._waiting.clear()
                self._count(event.facts)
            case Changed():
                self._count(event.facts)
            case LeadershipLost():
                self._standing.clear()
            case _:
                return
        told = self._standing.keys() - self._waiting.keys()
        for model in told:
            del self._standing[model]
        if told:
            self._changed()

    def _count(self, facts: Iterable[Fact]) -> None:
        for fact in facts:
            if not isinstance(fact, DemandSeen) or fact.gateway == self._own:
                continue
            gateways = self._waiting.setdefault(fact.model, set())
            if fact.demand is not None and fact.demand.waiting:
                gateways.add(fact.gateway)
            else:
                gateways.discard(fact.gateway)
            if not gateways:
                del self._waiting[fact.model]
