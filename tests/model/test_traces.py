"""What the real coordinator, daemon and agents do through a real etcd is a run of the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import pytest

from coordinator.store import keys
from coordinator.store.etcd import EtcdStore
from tests.helpers.coordinator import coordinator
from tests.helpers.daemon import DaemonProcess
from tests.helpers.etcd import RealEtcd, running_etcd
from tests.helpers.light_engine import LightEngine
from tests.helpers.token_model import Transcript, accepted

PATIENCE_S = 60.0
SIZE = 40 << 20
"""Of each engine; the device of 64 MiB holds one."""


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[RealEtcd]:
    with running_etcd(tmp_path / "etcd") as running:
        yield running


class Stage:
    """A node under a real coordinator, and the transcript of what its etcd shows."""

    def __init__(self, folder: Path, etcd: RealEtcd, daemon: DaemonProcess, store: EtcdStore) -> None:
        self.daemon = daemon
        self.transcript = Transcript(daemon.ids[0])
        self._folder = folder
        self._etcd = etcd
        self._store = store
        self._grew = asyncio.Event()
        self._following = asyncio.ensure_future(self._follow())
        self._following.add_done_callback(lambda _: self._grew.set())

    async def end(self) -> None:
        self._following.cancel()
        await asyncio.wait((self._following,))

    async def _follow(self) -> None:
        start = (await self._store.list(keys.ROOT)).revision + 1
        async with aclosing(self._store.watch(keys.ROOT, start)) as news:
            async for changes in news:
                self.transcript.add(changes)
                self._grew.set()

    async def until(self, line: str, after: int = 0) -> None:
        """Until the transcript has `line`, not counting its first `after` lines."""
        async with asyncio.timeout(PATIENCE_S):
            while line not in self.transcript.lines[after:]:
                self._grew.clear()
                await self._grew.wait()
                if self._following.done():
                    self._following.result()

    async def engine(self, name: str) -> LightEngine:
        return await LightEngine.start(self._folder, self._etcd.url, name, node=self.daemon.node, size=SIZE)


@asynccontextmanager
async def stage(folder: Path, etcd: RealEtcd) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        store = etcd.client()
        stack.push_async_callback(store.close)
        daemon = stack.enter_context(DaemonProcess(folder, etcd.url, node="n", devices=["0:host:64MiB"]))
        await daemon.ready(store)
        one = Stage(folder, etcd, daemon, store)
        stack.push_async_callback(one.end)
        await stack.enter_async_context(coordinator(store, models=("a", "b")))
        yield one


async def test_switches_and_a_death_are_a_run_of_the_model(model: Path, tmp_path: Path, etcd: RealEtcd) -> None:
    async with stage(tmp_path, etcd) as one:
        lines = one.transcript.lines
        async with await one.engine("a") as a:
            await one.until("answer 0 resident")
            async with await one.engine("b") as b:
                await one.until("answer 1 resident")
                for engine in (a, b, a):
                    assert (await engine.ask())[0] == 200
                died = len(lines)
                a.kill()
                assert (await b.ask())[0] == 200
                await one.until("gone 0", died)
                async with await one.engine("a") as again:
                    await one.until("answer 2 resident")
                    assert (await again.ask())[0] == 200
                    assert (await b.ask())[0] == 200
                    ended = list(lines)
    said = ended.count("restore 0") + ended.count("restore 1")
    assert said >= 5
    options = {"engines": 3, "residents": 0, "wanted": 0, "registered": 0, "demand": 9, "crash": 1, "lag": 3}
    fits, total = accepted(model, tmp_path, ended, **options)
    assert fits == total, ended[: fits + 1]
    await asyncio.to_thread(notices_what_cannot_be, model, tmp_path, ended, options)


def notices_what_cannot_be(model: Path, folder: Path, lines: list[str], options: dict[str, int]) -> None:
    """The acceptance can fail: each of these runs breaks a rule."""
    first = lines.index("offload 0")
    early = [*lines[:first], next(line for line in lines[first:] if line.startswith("restore 1")), *lines[first:]]
    unpublished = [line for line in lines if not line.startswith("publish")]
    for wrong in (early, unpublished):
        fits, total = accepted(model, folder, wrong, **options)
        assert fits < total
