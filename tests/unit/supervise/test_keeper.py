"""Keepers with real, trivial children."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from coordinator.supervise import child as child_module
from coordinator.supervise import group
from coordinator.supervise import keeper as keeper_module
from coordinator.supervise.backoff import Backoff
from coordinator.supervise.child import Child
from coordinator.supervise.guard import Guard
from coordinator.supervise.keeper import Keeper, Kind, Program, State, describe
from tests.helpers.processes import alive, first_line, wait_gone


class Heard:
    """A listener that remembers, and can be waited on."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self.said: list[str] = []
        self.news = asyncio.Event()

    def moved(self, keeper: Keeper) -> None:
        self.states.append(keeper.state)
        self.news.set()

    def say(self, text: str) -> None:
        self.said.append(text)
        self.news.set()

    async def until(self, wanted) -> None:
        async with asyncio.timeout(60):
            while not wanted():
                self.news.clear()
                await self.news.wait()


@pytest.fixture
def guard() -> Iterator[Guard]:
    with Guard() as guard:
        yield guard


class Stage:
    """Makes keepers of shell scripts; all are ready once `ready` is set."""

    def __init__(self, folder: Path, guard: Guard) -> None:
        self.folder = folder
        self.heard = Heard()
        self.ready = asyncio.Event()
        self._guard = guard

    def keeper(self, script: str, slot: asyncio.Semaphore | None = None, **options: object) -> Keeper:
        program = Program("x", Kind.ENGINE, ("/bin/sh", "-c", script), **options)
        backoff = Backoff(first_s=0.01, longest_s=0.02)
        return Keeper(program, self._spawn, self._ready, self.heard, slot or asyncio.Semaphore(), backoff)

    async def _spawn(self, program: Program) -> Child:
        return await Child.spawn(program.argv, {**os.environ, **program.env}, self.folder / "log", self._guard)

    async def _ready(self, program: Program, child: object) -> None:
        await self.ready.wait()

    async def grandchild(self) -> int:
        return int(await asyncio.to_thread(first_line, self.folder / "log"))


@pytest.fixture
def stage(tmp_path: Path, guard: Guard) -> Stage:
    return Stage(tmp_path, guard)


async def test_it_is_stopped_with_all_that_it_started(stage: Stage):
    keeper = stage.keeper("sleep 1000 & echo $!; wait")
    stage.ready.set()
    task = asyncio.create_task(keeper.run())
    await stage.heard.until(lambda: keeper.state is State.READY)
    pids = [keeper.child.pid, await stage.grandchild()]
    await keeper.stop(asyncio.Event())
    await task
    assert not any(map(alive, pids))
    assert stage.heard.states == [State.STARTING, State.READY, State.STOPPING, State.ENDED]
    assert stage.heard.said == []


async def test_what_ignores_sigterm_is_killed_after_the_limit(stage: Stage):
    keeper = stage.keeper("trap '' TERM; sleep 1000 & echo $!; while :; do wait; done", stop_s=0.1)
    task = asyncio.create_task(keeper.run())
    pid = await stage.grandchild()
    await keeper.stop(asyncio.Event())
    await task
    assert not alive(pid)


async def test_hurry_ends_the_patience(stage: Stage):
    keeper = stage.keeper("trap '' TERM; sleep 1000 & echo $!; while :; do wait; done", stop_s=1000)
    task = asyncio.create_task(keeper.run())
    pid = await stage.grandchild()
    hurry = asyncio.Event()
    stopping = asyncio.create_task(keeper.stop(hurry))
    await stage.heard.until(lambda: keeper.state is State.STOPPING)
    hurry.set()
    await stopping
    await task
    assert not alive(pid)


async def test_a_crash_takes_the_rest_of_the_group_along_and_is_announced(stage: Stage):
    keeper = stage.keeper("sleep 1000 & echo $!; kill -9 $$", restart=False)
    await keeper.run()
    assert stage.heard.said == ["x was killed by SIGKILL; it is not restarted (restart: never)"]
    assert not alive(await stage.grandchild())
    assert stage.heard.states[-1] is State.ENDED


async def test_it_is_started_again_until_it_is_given_up(stage: Stage):
    keeper = stage.keeper("exit 3", give_up=3)
    await keeper.run()
    assert stage.heard.said == [
        "x ended with status 3; restarting in 0.01 s (crash 1)",
        "x ended with status 3; restarting in 0.02 s (crash 2)",
        "x ended with status 3; given up after 3 failed starts",
    ]


async def test_a_crash_after_it_was_ready_is_no_failed_start(stage: Stage):
    stage.ready.set()
    keeper = stage.keeper("sleep 0.2; exit 1", give_up=1)
    task = asyncio.create_task(keeper.run())
    await stage.heard.until(lambda: stage.heard.states.count(State.READY) == 3)
    await keeper.stop(asyncio.Event())
    await task
    assert [said for said in stage.heard.said if "restarting in" not in said] == []


async def test_a_stop_during_the_back_off_is_obeyed_at_once(stage: Stage):
    keeper = stage.keeper("exit 1")
    keeper._backoff = Backoff(first_s=1000, longest_s=1000)
    task = asyncio.create_task(keeper.run())
    await stage.heard.until(lambda: keeper.state is State.BACKING_OFF)
    await keeper.stop(asyncio.Event())
    await task
    assert len(stage.heard.said) == 1


async def test_only_as_many_start_at_once_as_there_are_slots_and_ready_frees_one(stage: Stage):
    slot = asyncio.Semaphore(1)
    first, second = stage.keeper("sleep 1000", slot), stage.keeper("sleep 1000", slot)
    tasks = [asyncio.create_task(keeper.run()) for keeper in (first, second)]
    await stage.heard.until(lambda: first.state is State.STARTING)
    assert second.state is State.WAITING
    stage.ready.set()
    await stage.heard.until(lambda: second.state is State.READY)
    for keeper in (first, second):
        await keeper.stop(asyncio.Event())
    await asyncio.gather(*tasks)


async def test_a_wait_for_a_slot_is_no_calm_life(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    now = 0.0

    class Busy(asyncio.Semaphore):
        """Somebody else has it for longer than a process must live to be forgiven."""

        async def acquire(self) -> bool:
            nonlocal now
            now += 1000.0
            return await super().acquire()

    monkeypatch.setattr(keeper_module, "time", SimpleNamespace(monotonic=lambda: now))
    keeper = stage.keeper("exit 3", Busy(), give_up=3)
    await keeper.run()
    assert [said.rpartition("(")[2] for said in stage.heard.said[:2]] == ["crash 1)", "crash 2)"]


async def test_a_start_that_hangs_holds_up_no_end(stage: Stage):
    begun = asyncio.Event()

    async def hang(program: Program) -> Child:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    keeper = stage.keeper("")
    keeper._spawn = hang
    task = asyncio.create_task(keeper.run())
    await begun.wait()
    await asyncio.wait_for(keeper.stop(asyncio.Event()), 60)
    await task
    assert stage.heard.said == []


async def test_a_cancelled_keeper_leaves_no_process(stage: Stage):
    keeper = stage.keeper("sleep 1000 & echo $!; wait")
    task = asyncio.create_task(keeper.run())
    pids = [await stage.grandchild(), keeper.child.pid]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for pid in pids:
        await asyncio.to_thread(wait_gone, pid)
    assert keeper.ended.is_set()


async def test_a_program_that_does_not_exist_says_so_in_its_log(stage: Stage):
    keeper = stage.keeper("", restart=False)
    keeper.program = Program("x", Kind.ENGINE, ("/no/such/program",), restart=False)
    await keeper.run()
    assert stage.heard.said == ["x ended with status 127; it is not restarted (restart: never)"]
    assert "/no/such/program cannot be started: No such file" in (stage.folder / "log").read_text()


def test_a_launched_program_dies_with_its_parent_alone(tmp_path: Path):
    launch = Path(child_module.__file__).with_name("launch.py")
    script = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, {str(launch)!r}, str(os.getpid()), 'sleep', '1000'])\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    wait_gone(pid)


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "ended with status 0"), (-9, "was killed by SIGKILL"), (-64, "was killed by SIGRTMAX"), (-99, "signal 99")],
)
def test_an_end_is_described(status, words):
    assert words in describe(status)


SHARES_MEMORY = """
import os, time
from multiprocessing.shared_memory import SharedMemory
block = SharedMemory(create=True, size=4096)
print(block.name, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("how", ["stopped", "killed", "guard"])
async def test_shared_memory_goes_with_its_processes(stage: Stage, tmp_path: Path, how):
    """Python's resource tracker unlinks it, if it is let live for that long."""
    (tmp_path / "shares.py").write_text(SHARES_MEMORY)
    keeper = stage.keeper(f"{sys.executable} {tmp_path}/shares.py & wait", restart=False)
    task = asyncio.create_task(keeper.run())
    name = await asyncio.to_thread(first_line, tmp_path / "log")
    assert shared(name)
    if how == "stopped":
        await keeper.stop(asyncio.Event())
    elif how == "killed":
        os.kill(keeper.child.pid, 9)
    else:
        await asyncio.to_thread(group.end, [keeper.child.pid])
    await task
    assert not shared(name)


def shared(name: str) -> bool:
    return Path("/dev/shm", name).exists()
