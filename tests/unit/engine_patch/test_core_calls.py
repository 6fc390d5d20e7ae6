"""A restore lets requests run on from EngineCore itself, and lets who waits at the door in meanwhile; a denied one
takes both back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from enum import Enum
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.core.model import Load
from engine_patch import core_calls, report, spin
from engine_patch.door import Door
from engine_patch.engine import VllmEngine
from engine_patch.postbox import Postbox
from engine_patch.report import Report


@pytest.fixture(autouse=True)
def not_for_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """How an EngineCore waits would stay for all tests after these."""
    monkeypatch.setattr("coordinator.store.prompt.all_prompt", lambda: None)
    monkeypatch.setattr("engine_patch.spin._rests_until", 0.0)


class Paused(Enum):
    UNPAUSED = 0
    PAUSED_ALL = 2


class Scheduler:
    pause_state = Paused.UNPAUSED

    def __init__(self, did: list[str]) -> None:
        self.did = did

    def set_pause_state(self, state: Paused) -> None:
        self.did.append(state.name)


class Core:
    """EngineCore as far as a restore goes."""

    def __init__(self, reports: Sequence[Report]) -> None:
        self.reports = reports
        self.did: list[str] = []
        self.scheduler = Scheduler(self.did)
        self.rested: list[float] = []

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[str]:
        self.did.append(method)
        self.rested.append(spin._rests_until)
        return [report.encode(one).decode() for one in self.reports]

    def resume_scheduler(self) -> None:
        self.did.append("resume")

    def has_work(self) -> bool:
        return False


READY = Report(rank=0, pid=1, pending=True)
BACK = Report(rank=1, pid=2)
DENIED = Report(rank=1, pid=2, denied="no space")
BROKEN = Report(rank=1, pid=2, error="bad bytes")


@pytest.mark.parametrize(
    ("reports", "runs"),
    [([READY], True), ([BACK], True), ([READY, BACK], True), ([READY, DENIED], False), ([BACK, BROKEN], False)],
)
def test_requests_run_on_exactly_where_every_rank_has_its_memory(reports: list[Report], runs: bool) -> None:
    core = Core(reports)
    texts = core_calls.restore(core)
    assert core.did == [core_calls.RESTORE, *(["resume"] if runs else [])]
    assert report.decode(texts) == tuple(sorted(reports, key=lambda one: one.rank))


@pytest.mark.parametrize("reports", [[READY], [DENIED]])
def test_it_does_not_spin_before_memory_is_there_and_a_step_was_run(reports: list[Report]) -> None:
    core = Core(reports)
    core_calls.restore(core)
    assert core.rested == [inf]
    assert (spin._rests_until < inf) is (reports == [READY])
    assert spin._rests_until > time.monotonic()


class Client:
    """AsyncLLM over a `Core`, whose answers wait for `go`."""

    def __init__(self, core: Core) -> None:
        self.engine_core = self
        self.core = core
        self.go = asyncio.Event()
        self.asked = asyncio.Event()

    async def call_utility_async(self, method: str, *args: Any) -> Any:
        self.asked.set()
        await self.go.wait()
        if method == core_calls.DRAIN:
            return core_calls.drain(self.core)
        return core_calls.restore(self.core)

    async def collective_rpc(self, method: str, *, args: tuple[Any, ...] = ()) -> list[str]:
        return self.core.collective_rpc(method, args)

    async def resume_scheduler_async(self) -> None:
        self.core.did.append("resume by call")


class World:
    def __init__(self, reports: Sequence[Report]) -> None:
        self.loads: list[Load] = []
        self.core = Core(reports)
        self.client = Client(self.core)
        self.door = Door(8, self.loads.append)
        loop = asyncio.get_running_loop()
        self.engine = VllmEngine(self.client, self.door, loop, Postbox())  # type: ignore[arg-type]

    async def request(self, inside: asyncio.Event, end: asyncio.Event) -> None:
        async with self.door.passage(60) as let_in:
            assert let_in
            inside.set()
            await end.wait()


async def test_who_waits_is_let_in_while_the_restore_is_under_way() -> None:
    world, inside, end = World([READY]), asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(world.request(inside, end))
        await asyncio.sleep(0)
        restoring = tasks.create_task(world.engine.restore())
        await world.client.asked.wait()
        await inside.wait()
        assert not restoring.done()
        world.client.go.set()
        await restoring
        await world.engine.resume()
        assert world.core.did == [core_calls.RESTORE, "resume"]  # and not a second time
        end.set()


async def test_a_denied_restore_freezes_who_came_in_and_counts_them_as_demand() -> None:
    world, inside, end = World([DENIED]), asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(world.request(inside, end))
        world.client.go.set()
        await world.engine.restore()
        await inside.wait()
        await world.engine.undo()
        assert not world.door.is_open
        assert world.loads[-1] == Load(waiting=1)
        assert world.core.did == [core_calls.RESTORE, "vnpu_undo"]
        world.core.reports = [READY]
        await world.engine.restore()
        assert world.door.is_open
        end.set()


async def test_a_drain_that_led_to_nothing_is_ended_by_a_call() -> None:
    world = World([READY])
    world.client.go.set()
    async with asyncio.timeout(60):
        await world.engine.restore()
        await world.engine.resume()
        await world.engine.drain()
        await world.engine.resume()
    assert world.core.did == [core_calls.RESTORE, "resume", "PAUSED_ALL", "resume by call"]


def test_an_offload_whose_drain_failed_asks_no_worker() -> None:
    core = SimpleNamespace(has_work=lambda: True, pause_scheduler=_cannot, scheduler=None)
    with pytest.raises(OSError, match="no pause"):
        core_calls.drain(core)
    with pytest.raises(RuntimeError, match="the drain before it failed"):
        core_calls.offload(core, None)


def _cannot(**_: Any) -> None:
    raise OSError("no pause")
