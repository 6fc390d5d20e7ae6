"""When keep-alives stop, and what ends an engine: real processes, a fake engine around them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from engine_patch import pulse
from engine_patch.pulse import Sign
from engine_patch.vitals import Vitals, first_death
from tests.helpers.eventually import eventually

SLEEPS = "import time; time.sleep(600)"
WORKS = "while True: pass"


class FakeEngine:
    """Answers pings while `answers` is set."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self.answers = asyncio.Event()
        self.answers.set()

    async def ping(self) -> None:
        await self.answers.wait()

    def pids(self) -> tuple[int, ...]:
        return self._pids


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", request.param]) as started:
        yield started
        started.send_signal(signal.SIGCONT)
        started.kill()


async def until(vital: Vitals, healthy: bool) -> None:
    await eventually(lambda: vital.healthy is healthy)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "PING_S", 0.3)
    monkeypatch.setattr(pulse, "EVERY_S", 0.01)


@pytest.mark.parametrize("process", [SLEEPS], indirect=True)
async def test_silence_without_a_sign_of_life_stops_the_keep_alives_until_it_answers(process: subprocess.Popen[bytes]):
    engine, vital = FakeEngine(process.pid), Vitals()
    watching = asyncio.create_task(vital.ping(engine, lambda: False))  # type: ignore[arg-type]
    engine.answers.clear()
    await until(vital, healthy=False)
    well = asyncio.create_task(vital.well())
    engine.answers.set()
    await asyncio.wait_for(well, 60)
    assert vital.healthy
    watching.cancel()


@pytest.mark.parametrize("process", [WORKS], indirect=True)
async def test_a_long_step_is_no_silence_but_a_stopped_process_is(process: subprocess.Popen[bytes]):
    engine, vital = FakeEngine(process.pid), Vitals()
    engine.answers.clear()
    before = pulse.signs([process.pid])
    await eventually(lambda: pulse.signs([process.pid])[process.pid].ticks >= before[process.pid].ticks + 20)
    assert not pulse.stuck(before, pulse.signs([process.pid]))
    watching = asyncio.create_task(vital.ping(engine, lambda: True))  # type: ignore[arg-type]
    process.send_signal(signal.SIGSTOP)
    await until(vital, healthy=False)
    process.send_signal(signal.SIGCONT)
    await until(vital, healthy=True)
    watching.cancel()


@pytest.mark.parametrize("process", [SLEEPS], indirect=True)
async def test_during_a_memory_operation_silence_alone_is_no_matter(process: subprocess.Popen[bytes]):
    engine, vital = FakeEngine(process.pid), Vitals()
    engine.answers.clear()
    looked = asyncio.Event()

    def busy() -> bool:
        looked.set()
        return True

    watching = asyncio.create_task(vital.ping(engine, busy))  # type: ignore[arg-type]
    await asyncio.wait_for(looked.wait(), 60)
    await asyncio.sleep(0)
    assert vital.healthy
    watching.cancel()


@pytest.mark.parametrize("process", [SLEEPS], indirect=True)
async def test_the_death_of_a_process_is_noticed(process: subprocess.Popen[bytes]):
    waiting = asyncio.create_task(first_death([os.getpid(), process.pid]))
    await asyncio.sleep(0)
    process.kill()
    assert await asyncio.wait_for(waiting, 60) == process.pid
    process.wait()
    assert await asyncio.wait_for(first_death([process.pid]), 60) == process.pid


def test_stuck_means_stopped_or_nothing_moved():
    assert pulse.stuck({1: Sign("S", 5)}, {1: Sign("S", 5)})
    assert not pulse.stuck({1: Sign("S", 5), 2: Sign("S", 7)}, {1: Sign("S", 5), 2: Sign("R", 8)})
    assert pulse.stuck({1: Sign("S", 5), 2: Sign("S", 7)}, {1: Sign("T", 5), 2: Sign("R", 8)})
    assert pulse.stuck({1: Sign("S", 5)}, {})
