"""The daemon on the vendors' drivers, over their simulated libraries: chunks cross by descriptor or by number."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.core.model import Order
from coordinator.store.base import Store
from tests.helpers.daemon import DaemonProcess
from tests.helpers.etcd import RealEtcd
from tests.helpers.leader import Leader
from tests.helpers.puppet_engine import CHUNK, PuppetEngine, puppet_engine
from tests.helpers.simulator import card, environment

HINT = 20 << 40
ROOM = 4
_nodes = itertools.count()
"""A node of its own for each test: the last one's engines may not be buried when the next begins."""


@pytest.fixture(params=["ascend", "cuda"])
async def vendor(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, etcd: RealEtcd, store: Store, tmp_path: Path
) -> AsyncIterator[tuple[str, DaemonProcess]]:
    """A daemon whose device 0 is simulated and holds four chunks; it and the puppets are told so by the environment."""
    name: str = request.param
    card()
    for key, value in environment(name).items():
        monkeypatch.setenv(key, value)
    with DaemonProcess(tmp_path, etcd.url, node=f"on-{name}-{next(_nodes)}", devices=(f"0:{name}:8MiB",)) as daemon:
        yield name, await daemon.ready(store)


async def opened(engine: PuppetEngine, driver: str) -> None:
    await engine.worker.call("open_region", engine.device, driver, HINT, ROOM, CHUNK)


async def test_a_restore_and_an_offload_over_the_vendors_calls(
    vendor: tuple[str, DaemonProcess], leader: Leader
) -> None:
    name, daemon = vendor
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        for engine, count in ((a, 3), (b, 1)):
            await opened(engine, name)
            fence = await engine.begin()
            indices = list(range(count))
            assert await engine.worker.call("in_region", "map", *indices) == indices
            for i in indices:
                assert await engine.worker.call("in_region", "read", i, 4) == "\0\0\0\0"
                await engine.worker.call("in_region", "write", i, f"{engine.spec.holder.engine} {i}")
            await engine.leave(fence)
        for i in range(3):
            text = f"{a.spec.holder.engine} {i}"
            assert await a.worker.call("in_region", "read", i, len(text)) == text

        fence = await a.begin(Order.OFFLOAD, size=0)
        assert await a.worker.call("in_region", "drop", 0, 1, 2) == []
        await a.leave(fence)
        fence = await b.begin()
        assert await b.worker.call("in_region", "map", 1, 2, 3) == [0, 1, 2, 3]
        for i in (1, 2, 3):
            assert await b.worker.call("in_region", "read", i, 4) == "\0\0\0\0"  # not what `a` wrote there
        await b.leave(fence)


async def test_chunks_of_a_killed_engine_go_to_the_next(vendor: tuple[str, DaemonProcess], leader: Leader) -> None:
    name, daemon = vendor
    async with puppet_engine(daemon, leader, "a") as a:
        await opened(a, name)
        await a.begin()
        await a.worker.call("in_region", "map", 0, 1, 2, 3)
        os.kill(a.worker.pid, signal.SIGKILL)
        await leader.until(daemon.ids[0], lambda state: not state.owners)
    async with puppet_engine(daemon, leader, "b") as b:
        await opened(b, name)
        fence = await b.begin()
        assert await b.worker.call("in_region", "map", 0, 1, 2, 3) == [0, 1, 2, 3]
        await b.leave(fence)
