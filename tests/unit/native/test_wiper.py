"""When a device's soiled chunks are wiped: a double stands in for the device, the pool is real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from native._native import DriverError
from native.daemon import wiper as wiper_module
from native.daemon.counters import Counters
from native.daemon.wiper import Wiper
from native.fences import Holder
from native.pool import Owner, Pool
from native.protocol import Kind

A = Owner(Holder("a", "1"), 1)


class Bench:
    """A pool of ten chunks and its wiper. `wiped`: batches, in order."""

    def __init__(self) -> None:
        self.pool = Pool(10, 1, 1)
        while self.pool.debt:
            self.pool.grow()
        self.restoring = False
        self.fails = 0
        self.wiped: list[tuple[int, ...]] = []
        self.changed = asyncio.Event()
        self.counters = Counters()
        self.wiper = Wiper(self.pool, self._wipe, lambda: self.restoring, self.changed.set, self.counters)

    def _wipe(self, chunks: tuple[int, ...]) -> None:
        if self.fails:
            self.fails -= 1
            raise DriverError("the device is lost")
        self.wiped.append(chunks)

    def soil(self, count: int, kind: Kind = Kind.WEIGHTS) -> None:
        overwritten = kind is Kind.WEIGHTS
        self.pool.give_back(A, self.pool.take(A, kind, count, 1, 100, overwritten=overwritten))
        self.wiper.look()

    async def until(self, blank: int) -> None:
        while self.pool.blank != blank:
            await self.changed.wait()
            self.changed.clear()


@asynccontextmanager
async def running(monkeypatch: pytest.MonkeyPatch, quiet_s: float) -> AsyncIterator[Bench]:
    monkeypatch.setattr(wiper_module, "QUIET_S", quiet_s)
    monkeypatch.setattr(wiper_module, "RETRY_PAUSE", 0.0)
    bench = Bench()
    task = asyncio.create_task(bench.wiper.run())
    try:
        async with asyncio.timeout(60):
            yield bench
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def test_a_quiet_device_is_wiped_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, 0.01) as bench:
        bench.soil(10)
        await bench.until(10)
        assert bench.counters.facts()["wipe"]["bytes"] == 10


async def test_until_then_only_as_many_as_somebodys_kv_had(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, 3600) as bench:
        bench.soil(3, Kind.KV)
        bench.soil(10)
        await bench.until(3)
        assert bench.pool.soiled == 7
        bench.soil(3)
        await bench.until(3)


async def test_during_a_restore_only_what_somebody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, 0.0) as bench:
        bench.restoring = True
        bench.soil(10, Kind.KV)
        bench.wiper.ask(4)
        await bench.until(4)
        assert sorted(map(len, bench.wiped)) == [2, 2]  # by two threads
        bench.wiper.ask(4)  # there they are
        for _ in range(20):
            await asyncio.sleep(0)
        assert (bench.pool.blank, bench.pool.soiled) == (4, 6)  # and nobody is wiping the others
        bench.restoring = False
        bench.wiper.look()
        await bench.until(10)


async def test_a_failure_leaves_them_soiled_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, 0.0) as bench:
        bench.fails = 3
        bench.soil(10)
        await bench.until(10)
        assert bench.fails == 0
        assert bench.counters.facts()["wipe"]["bytes"] == 10
