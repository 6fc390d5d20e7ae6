"""What feeds the inbox."""

from __future__ import annotations

import asyncio

from coordinator.core.events import DemandSeen
from coordinator.sources import DemandPost


class Post:
    """A `DemandPost`, and what it has posted since it was last asked."""

    def __init__(self) -> None:
        self._heard: list[tuple[str, int]] = []
        self._post = DemandPost("g", self._hear)

    def _hear(self, event: DemandSeen) -> None:
        self._heard.append((event.model, event.demand.waiting if event.demand is not None else 0))

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
