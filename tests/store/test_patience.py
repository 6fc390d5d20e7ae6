"""Short waits one after another, each with a limit, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any

import pytest

from coordinator.store.patience import Patience
from tests.helpers.whole.loop import VirtualLoop


def ran(work: Coroutine[Any, Any, None]) -> VirtualLoop:
    loop = VirtualLoop(Random(0))
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()
    return loop


def test_each_wait_has_its_own_limit_and_what_lies_between_counts_for_none() -> None:
    async def waiting() -> None:
        patience = Patience(3.0)
        for _ in range(10):
            with patience:
                await asyncio.sleep(2.0)
        await asyncio.sleep(50.0)
        with patience:
            await asyncio.sleep(2.9)
        patience.close()

    assert ran(waiting()).time() == pytest.approx(72.9)


def test_a_wait_that_takes_too_long_ends_and_the_next_one_begins_anew() -> None:
    ends: list[float] = []

    async def waiting() -> None:
        loop, patience = asyncio.get_running_loop(), Patience(3.0)
        for seconds in (2.0, 9.0, 2.9, 9.0):
            try:
                with patience:
                    await asyncio.sleep(seconds)
            except TimeoutError:
                ends.append(loop.time())
        patience.close()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    ran(waiting())
    assert ends == pytest.approx([5.0, 10.9])


def test_who_is_cancelled_is_not_told_of_time() -> None:
    async def waiting() -> None:
        task = asyncio.ensure_future(_for_ever(3.0))
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    ran(waiting())


def test_cancelled_at_the_moment_at_which_time_is_over_it_is_cancelled() -> None:
    async def waiting() -> None:
        task = asyncio.ensure_future(_for_ever(3.0))
        await asyncio.sleep(0.0)
        asyncio.get_running_loop().call_at(3.0, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    ran(waiting())


def test_without_a_limit_it_waits_for_ever() -> None:
    async def waiting() -> None:
        with Patience(None):
            await asyncio.sleep(1e6)

    assert ran(waiting()).time() == 1e6


async def _for_ever(patience_s: float) -> None:
    patience = Patience(patience_s)
    try:
        with patience:
            await asyncio.get_running_loop().create_future()
    finally:
        patience.close()
