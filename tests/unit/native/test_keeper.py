"""Nothing is said before the disk has it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from native.daemon import keeper as keeper_module
from native.daemon.keeper import Keeper
from native.fences import Record
from native.journal import DeviceLedger, Journal, Ledger


class Disk:
    """A journal whose writes can be held up and made to fail."""

    path = Path("ledger")

    def __init__(self) -> None:
        self.written: list[Ledger] = []
        self.failures = 0
        self.free = threading.Event()
        self.free.set()

    def write(self, ledger: Ledger) -> None:
        self.free.wait()
        if self.failures:
            self.failures -= 1
            raise OSError(28, "No space left on device")
        self.written.append(ledger)


class State:
    """What changes."""

    def __init__(self) -> None:
        self.record = Record("e1")

    def ledger(self) -> Ledger:
        return Ledger("n", devices={"0": DeviceLedger(self.record)})


@asynccontextmanager
async def keeping(disk: Disk, state: State) -> AsyncIterator[tuple[Keeper, list[Ledger]]]:
    shown: list[Ledger] = []
    keeper = Keeper(disk, state.ledger, shown.append)  # type: ignore[arg-type]
    task = asyncio.create_task(keeper.run())
    try:
        yield keeper, shown
    finally:
        disk.free.set()
        task.cancel()
        await asyncio.wait((task,))


async def test_durable_means_written_and_only_then_shown() -> None:
    disk, state = Disk(), State()
    disk.free.clear()
    async with keeping(disk, state) as (keeper, shown):
        state.record = Record("e1", closed=7)
        keeper.mark()
        waiting = asyncio.create_task(keeper.durable())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert not shown
        disk.free.set()
        await waiting
        assert [ledger.devices["0"].record.closed for ledger in disk.written] == [7]
        assert shown == disk.written


async def test_many_changes_while_the_disk_is_slow_are_one_write() -> None:
    disk, state = Disk(), State()
    async with keeping(disk, state) as (keeper, _):
        disk.free.clear()
        keeper.mark()
        first = asyncio.create_task(keeper.durable())
        await asyncio.sleep(0.05)
        for closed in range(1, 11):
            state.record = Record("e1", closed=closed)
            keeper.mark()
        rest = asyncio.create_task(keeper.durable())
        disk.free.set()
        await asyncio.gather(first, rest)
        assert len(disk.written) == 2
        assert disk.written[-1].devices["0"].record.closed == 10


async def test_a_failing_disk_is_tried_again_and_nothing_is_shown_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "RETRY_PAUSE", 0.0)
    disk, state = Disk(), State()
    disk.failures = 3
    async with keeping(disk, state) as (keeper, shown):
        keeper.mark()
        await keeper.durable()
        assert disk.failures == 0
        assert len(disk.written) == len(shown) == 1


async def test_what_only_was_seen_is_not_worth_a_write() -> None:
    disk, state = Disk(), State()
    async with keeping(disk, state) as (keeper, shown):
        for seen in range(5):
            state.record = Record("e1", seen=seen)
            keeper.mark()
            await keeper.durable()
        assert len(disk.written) == 1
        assert len(shown) == 5


async def test_on_a_real_disk(tmp_path: Path) -> None:
    journal, state = Journal(tmp_path, "boot"), State()
    keeper = Keeper(journal, state.ledger, lambda ledger: None)
    task = asyncio.create_task(keeper.run())
    state.record = Record("e1", closed=3)
    keeper.mark()
    await keeper.durable()
    assert journal.load() == state.ledger()
    task.cancel()
    await asyncio.wait((task,))
    journal.close()
