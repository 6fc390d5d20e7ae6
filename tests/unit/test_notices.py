"""What a leader tells the gateways of others, and for how long."""

from __future__ import annotations

import pytest

from coordinator.core.commands import Refuse
from coordinator.core.events import Changed, DemandSeen, LeadershipLost, Listed
from coordinator.core.model import Demand, ModelId
from coordinator.notices import Notices

A, B = ModelId("a"), ModelId("b")


class Desk:
    """Notices of the gateway `own`, and how often they changed."""

    def __init__(self) -> None:
        self.changes = 0
        self.notices = Notices("own", self._count)
        self._revision = 0

    def _count(self) -> None:
        self.changes += 1

    def ask(self, gateway: str, model: ModelId, waiting: int) -> None:
        demand = Demand(waiting=waiting) if waiting else None
        self._revision += 1
        self.notices.saw(Changed((DemandSeen(gateway, model, demand),), self._revision))

    def refuse(self, model: ModelId, reason: str = "no") -> None:
        self.notices.refused(Refuse(model, reason, 30.0))

    @property
    def told(self) -> dict[str, str]:
        return {model: refusal.reason for model, refusal in self.notices.standing.items()}


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_refusal_stands_until_nobody_waits_elsewhere(desk: Desk) -> None:
    desk.ask("g1", A, 2)
    desk.ask("g2", A, 1)
    desk.refuse(A, "drained")
    assert desk.told == {"a": "drained"}
    desk.ask("g1", A, 0)
    desk.refuse(A, "too large")
    assert desk.told == {"a": "too large"}
    desk.ask("g2", A, 0)
    assert desk.told == {}
    assert desk.changes == 3


def test_where_nobody_waits_elsewhere_nothing_is_written(desk: Desk) -> None:
    desk.ask("own", A, 5)
    desk.refuse(A)
    desk.ask("g1", B, 1)
    desk.ask("g1", B, 0)
    desk.refuse(B)
    assert (desk.told, desk.changes) == ({}, 0)


def test_a_listing_replaces_what_was_known(desk: Desk) -> None:
    for model in (A, B):
        desk.ask("g1", model, 1)
        desk.refuse(model)
    desk.notices.saw(Listed((DemandSeen("g1", B, Demand(waiting=1)),), 9))
    assert desk.told == {"b": "no"}


def test_who_does_not_lead_tells_nothing(desk: Desk) -> None:
    desk.ask("g1", A, 1)
    desk.refuse(A)
    desk.notices.saw(LeadershipLost())
    assert desk.told == {}
