"""Everybody is out of pages before they are anybody else's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from native.daemon.bell import Bell
from native.daemon.clearing import Clearing
from native.daemon.notices import Notices
from native.daemon.views import NoView, Views

OWNER, READER, CHUNKS = 1, 2, (7, 8)


class Node:
    """As far as clearing goes."""

    def __init__(self) -> None:
        self.views, self.notices, self.bell = Views(), Notices(1), Bell()
        self.engines: tuple[Any, ...] = ()

    def settle(self) -> None:
        self.bell.ring()

    def viewed(self) -> int:
        """A view of the pages that somebody has open; its id."""
        view = self.views.offer("0", OWNER, CHUNKS).id
        self.views.open(view, READER, "reader")
        return view

    def closed(self, view: int) -> None:
        self.views.close(view, READER)
        self.settle()


async def test_what_the_dead_leave_is_taken_when_views_are_closed_that_came_meanwhile_too() -> None:
    node, taken = Node(), asyncio.Event()
    clearing = Clearing(node, 3600.0)  # type: ignore[arg-type]
    running = asyncio.create_task(clearing.run())
    try:
        first = node.viewed()
        clearing.soon("pages", lambda: node.views.touching("0", CHUNKS), taken.set)
        while not (held := node.views.get(first)) or not held.revoked:
            await node.bell.wait()
        second = node.viewed()
        node.closed(first)
        while not (held := node.views.get(second)) or not held.revoked:
            await node.bell.wait()
        assert not taken.is_set()
        asked = node.notices.news(READER, 0)
        assert asked is not None
        assert asked.let_go == (first, second)
        with pytest.raises(NoView):
            node.views.open(second, READER + 1, "another")
        node.closed(second)
        async with asyncio.timeout(30):
            await taken.wait()
    finally:
        running.cancel()
        await asyncio.wait((running,))


async def test_who_has_nothing_left_behind_is_not_waited_for() -> None:
    taken = asyncio.Event()
    clearing = Clearing(SimpleNamespace(), 3600.0)  # type: ignore[arg-type]
    running = asyncio.create_task(clearing.run())
    clearing.soon("pages", lambda: (), taken.set)
    async with asyncio.timeout(30):
        await taken.wait()
    running.cancel()
    await asyncio.wait((running,))
