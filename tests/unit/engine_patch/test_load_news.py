"""When an engine tells that requests wait in it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest

from coordinator.core.model import Holder, Load, Order, Token, Value
from coordinator.store import keys
from coordinator.store.memory import MemoryEtcd
from engine_patch import actions
from engine_patch.agent import LOAD_SPACING_S, Agent
from engine_patch.estimate import Weights
from engine_patch.events import EpochSeen, Held, LeaseGained, TokensSeen
from engine_patch.plan import Plan
from engine_patch.settings import Settings

ME = Holder("a", "n1")


class Puts:
    """The publisher: within how many seconds each load was to be put."""

    def __init__(self) -> None:
        self.within: list[float] = []
        self.hastened: list[str] = []

    def put(self, key: str, value: Value, within: float = 0.0) -> None:
        assert isinstance(value, Load)
        self.within.append(within)

    def hasten(self, key: str) -> None:
        self.hastened.append(key)


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> tuple[Agent, Puts]:
    plan = Plan(model="a", url="http://a:1", pid=1, boot_id="b", weights=Weights(1, 0), kv=1)
    made, puts = Agent(Settings(endpoints=()), plan, ME, MemoryEtcd().client(), lambda *_: None), Puts()
    monkeypatch.setattr(made, "_publisher", puts)
    return made, puts


async def test_who_begins_to_wait_is_told_at_once_and_the_rest_a_little_later(agent: tuple[Agent, Puts]) -> None:
    asleep, puts = agent
    for waiting in (1, 2, 0, 1):
        asleep.load(Load(waiting=waiting))
    assert puts.within == [0.0, LOAD_SPACING_S, LOAD_SPACING_S, 0.0]


async def test_who_waits_for_the_restore_that_is_under_way_is_told_a_little_later(
    agent: tuple[Agent, Puts],
) -> None:
    coming, puts = agent
    token = Token(holder=ME, lease=7, order=Order.RESTORE, bytes=2)
    for event in (LeaseGained(7), EpochSeen("e"), TokensSeen((Held("local/0", token, 3),))):
        coming._life.handle(event)
    coming.load(Load(waiting=1))
    assert puts.within == [LOAD_SPACING_S]


class Tasks:
    """Nothing is carried out."""

    def create_task(self, work: Coroutine[Any, Any, None]) -> None:
        work.close()


async def test_what_an_engine_holds_is_told_before_it_leaves(
    agent: tuple[Agent, Puts], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would be woken at once for requests that were answered."""
    leaving, puts = agent
    monkeypatch.setattr(leaving, "_tasks", Tasks(), raising=False)
    for action in (actions.Resume(), actions.Drain(), actions.Settle()):
        leaving._perform(action)
    assert puts.hastened == [keys.load("a")]
