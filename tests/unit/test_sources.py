"""What feeds the inbox."""

from __future__ import annotations

import asyncio

from coordinator.core.events import DemandSeen
from coordinator.core.model import Demand
from coordinator.sources import DemandPost


class Post:
    """A `DemandPost`, and what it has posted since it was last asked."""

    def __init__(self) -> None:
        self._heard: list[tuple[str, int]] = []
        self._post = DemandPost("g", self._hear)
        self.latest: Demand | None = None

    def _hear(self, event: DemandSeen) -> None:
        self._heard.append((event.model, event.demand.waiting if event.demand is not None else 0))
        self.latest = event.demand

    def keep(self, model: str, seconds: float | None) -> None:
        self._post.kept(model, seconds)

    def standing(self, **waiting: int) -> dict[str, Demand]:
        return self._post.standing(waiting)

    async def turn(self, *changes: tuple[str, int]) -> list[tuple[str, int]]:
        """These changes come in one turn of the loop."""
        for model, waiting in changes:
            self._post.changed(model, waiting)
        await asyncio.sleep(0)
        heard, self._heard = self._heard, []
        return heard


async def test_many_that_come_together_are_one_event() -> None:
    post = Post()
    assert await post.turn(("a", 1), ("a", 2), ("b", 1), ("a", 3)) == [("a", 3), ("b", 1)]
    assert await post.turn(("a", 4), ("b", 0)) == [("a", 4), ("b", 0)]
    assert await post.turn(("a", 3), ("a", 2)) == [("a", 2)]


async def test_one_that_replaces_another_is_seen_as_new() -> None:
    post = Post()
    assert await post.turn(("a", 1)) == [("a", 1)]
    assert await post.turn(("a", 0), ("a", 1)) == [("a", 0), ("a", 1)]
    assert await post.turn(("a", 2), ("a", 3), ("a", 0), ("a", 2)) == [("a", 0), ("a", 2)]
    assert await post.turn(("a", 1), ("a", 2)) == [("a", 1), ("a", 2)]
    assert await post.turn(("a", 1), ("a", 0)) == [("a", 0)]
    assert await post.turn(("a", 1), ("a", 0), ("a", 1)) == [("a", 1)]


async def test_how_long_requests_want_it_kept_goes_with_how_many_wait() -> None:
    post = Post()
    await post.turn(("a", 3))
    post.keep("a", 60.0)
    assert await post.turn() == [("a", 3)]
    assert post.latest == Demand(waiting=3, keep_alive=60.0)
    assert await post.turn(("a", 0)) == [("a", 0)]
    assert post.latest == Demand(waiting=0, keep_alive=60.0)
    assert post.standing(b=2) == {"a": Demand(waiting=0, keep_alive=60.0), "b": Demand(waiting=2)}
    post.keep("a", None)
    assert await post.turn() == [("a", 0)]
    assert (post.latest, post.standing(a=0)) == (None, {})
