"""What the gateway's benchmark stands on: when its stub answers."""

from __future__ import annotations

import asyncio
import time

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gateway.later import Later, due_at

TIMES = st.integers(0, 10**18)


@given(TIMES, st.integers(0, 10**9))
def test_without_steps_each_is_answered_in_its_own_time(now: int, wait: int) -> None:
    assert due_at(now, wait, 0) == now + wait


@given(TIMES, st.integers(0, 10**9), st.integers(1, 10**9))
def test_with_steps_nobody_is_answered_early_and_all_that_are_due_in_one_at_its_end(
    now: int, wait: int, step: int
) -> None:
    due = due_at(now, wait, step)
    assert due % step == 0
    assert 0 <= due - (now + wait) < step


async def test_a_herd_is_answered_in_one_go() -> None:
    loop = asyncio.get_running_loop()
    answered, seen, done = list[int](), list[int](), asyncio.Event()
    later = Later(loop, 0.001, 0.5)

    def answer(n: int) -> None:
        answered.append(n)
        loop.call_soon(look)

    def look() -> None:
        seen.append(len(answered))
        done.set()

    await step_begins(0.5)
    for n in range(5):
        later.call(lambda n=n: answer(n))  # type: ignore[misc]
    async with asyncio.timeout(10):
        await done.wait()
    assert (answered, seen[0]) == ([0, 1, 2, 3, 4], 5)


async def step_begins(step_s: float) -> None:
    """So that no step ends while a few are asked."""
    await asyncio.sleep(step_s - time.monotonic() % step_s + 0.01)
