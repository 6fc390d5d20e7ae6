"""How an engine's processes end together: real ones."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack

import pytest

from native.daemon.engines import Engines, Member, Unwelcome
from native.fences import Holder
from native.processes import Identity, boot_id, reopen, start_time

PATIENCE_S = 60.0
ENGINE, OTHER = Holder("a", "nonce"), Holder("b", "nonce")
Start = Callable[..., "Life"]


class Life:
    """A process that has said hello."""

    def __init__(self, process: subprocess.Popen[bytes], member: Member) -> None:
        self.process = process
        self.member = member

    async def ended(self) -> int:
        return await asyncio.wait_for(asyncio.to_thread(self.process.wait), PATIENCE_S)


class Deaths(list[Member]):
    """What the daemon hears of."""

    def __init__(self) -> None:
        super().__init__()
        self._heard = asyncio.Event()

    def __call__(self, member: Member) -> None:
        self.append(member)
        self._heard.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self) < count:
                self._heard.clear()
                await self._heard.wait()


@pytest.fixture
async def deaths() -> Deaths:
    return Deaths()


@pytest.fixture
def farewell_s() -> float:
    """Parametrize it for one that ends."""
    return 1000.0


@pytest.fixture
async def engines(deaths: Deaths, farewell_s: float) -> AsyncIterator[Engines]:
    found = Engines(deaths, farewell_s)
    yield found
    found.close()


@pytest.fixture
async def start(engines: Engines) -> AsyncIterator[Start]:
    with ExitStack() as stack:

        def one(role: str, *, holder: Holder = ENGINE) -> Life:
            process = stack.enter_context(subprocess.Popen(["sleep", "1000"]))
            stack.callback(process.kill)
            identity = Identity(process.pid, start_time(process.pid), boot_id())
            return Life(process, engines.welcome(reopen(identity), holder, role, 0))

        yield one


async def test_of_an_engine_whose_worker_dies_the_agent_ends_as_it_likes(
    start: Start, engines: Engines, deaths: Deaths
) -> None:
    agent, worker, second = start("agent"), start("worker"), start("worker")
    bystander = start("worker", holder=OTHER)
    worker.process.kill()
    assert await second.ended() == -signal.SIGKILL  # it may hold pages: nothing to wait for
    agent.process.terminate()
    assert await agent.ended() == -signal.SIGTERM
    await deaths.until(3)
    assert not engines.alive(ENGINE)
    assert bystander.process.poll() is None


@pytest.mark.parametrize("farewell_s", [0.01])
async def test_an_agent_that_does_not_end_is_killed(start: Start, deaths: Deaths) -> None:
    agent, worker = start("agent"), start("worker")
    worker.process.kill()
    assert await agent.ended() == -signal.SIGKILL
    await deaths.until(2)


async def test_an_agent_that_takes_its_time_keeps_no_device_waiting(
    start: Start, engines: Engines, deaths: Deaths
) -> None:
    start("agent")
    worker = start("worker")
    assert engines.alive(ENGINE)
    worker.process.kill()
    await deaths.until(1)
    assert not engines.alive(ENGINE)
    with pytest.raises(Unwelcome):
        engines.welcome(worker.member.process, ENGINE, "worker", 0)  # type: ignore[arg-type]


async def test_the_workers_of_a_dead_agent_are_killed_at_once(start: Start) -> None:
    agent, worker = start("agent"), start("worker")
    agent.process.kill()
    assert await worker.ended() == -signal.SIGKILL


async def test_who_is_doomed_gets_no_farewell(start: Start, engines: Engines, deaths: Deaths) -> None:
    """A reclaim, or an operation over its limit: PROTOCOL rules 10 and 13."""
    agent, worker = start("agent"), start("worker")
    engines.doom(ENGINE, "reclaimed")
    assert await agent.ended() == await worker.ended() == -signal.SIGKILL
    await deaths.until(2)


async def test_an_agent_that_maps_as_well_is_a_worker(start: Start, engines: Engines, deaths: Deaths) -> None:
    both, worker = start("agent"), start("worker")
    again = reopen(both.member.identity)
    assert engines.welcome(again, ENGINE, "worker", 1) is both.member
    worker.process.kill()
    assert await both.ended() == -signal.SIGKILL
