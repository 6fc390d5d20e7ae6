"""What workers tell about restores that went on behind their answers."""

from __future__ import annotations

import asyncio

from engine_patch.postbox import Postbox
from engine_patch.report import Report

PATIENCE_S = 30.0


def about(rank: int, turn: int, error: str = "") -> Report:
    return Report(rank=rank, pid=rank + 1, turn=turn, restored=rank, error=error)


async def test_all_ranks_reports_of_this_turn_are_waited_for():
    box = Postbox()
    async with asyncio.timeout(PATIENCE_S):
        waiting = asyncio.create_task(box.collect([0, 1], 7))
        for one in (about(1, 6), about(1, 7)):
            await asyncio.sleep(0)
            box.put(one)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        box.put(about(0, 7))
        assert [(one.rank, one.turn) for one in await waiting] == [(0, 7), (1, 7)]


async def test_what_came_before_anybody_collects_is_there():
    box = Postbox()
    box.put(about(0, 1))
    async with asyncio.timeout(PATIENCE_S):
        assert await box.collect([0], 1) == (about(0, 1),)


async def test_one_ranks_error_does_not_wait_for_the_others():
    box = Postbox()
    box.put(about(1, 3, "came back wrong"))
    async with asyncio.timeout(PATIENCE_S):
        (one,) = await box.collect([0, 1], 3)
    assert one.error == "came back wrong"
