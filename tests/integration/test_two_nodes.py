"""Two nodes under one coordinator: two real daemons, light engines on both, one etcd, or three of it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest

from coordinator.core.model import Device, Phase, Residency
from coordinator.picture import Mirror
from coordinator.store.etcd import EtcdStore
from tests.helpers.coordinator import Coordinator, coordinator
from tests.helpers.daemon import DaemonProcess
from tests.helpers.etcd import RealEtcd, running_etcd
from tests.helpers.etcd_cluster import etcd_cluster
from tests.helpers.light_engine import LightEngine

PATIENCE_S = 120.0
SIZE = 40 << 20
"""Of each engine; every device of 64 MiB holds one."""
PLACES = {"a": "n1", "b": "n1", "c": "n2", "d": "n2"}


class Etcd(Protocol):
    @property
    def url(self) -> str: ...

    def client(self) -> EtcdStore: ...


class TwoNodes:
    """The daemons, the engines, the coordinator; `answers` are what each model answered first."""

    def __init__(self, etcd: Etcd, mirror: Mirror, one: Coordinator, daemons: dict[str, DaemonProcess]) -> None:
        self.etcd = etcd
        self.daemons = daemons
        self.mirror = mirror
        self._coordinator = one
        self._answers: dict[str, object] = {}

    async def ask(self, models: Sequence[str]) -> None:
        """One after the other; each answers as it always did."""
        for model in models:
            status, answer = await self._coordinator.ask(model, steps=1)
            assert status == 200, (model, answer)
            assert self._answers.setdefault(model, answer) == answer
            self.within_capacity()

    def within_capacity(self) -> None:
        for name, device in self.mirror.picture.of(Device).items():
            assert device.charged <= device.capacity
            assert {PLACES[owner.holder.engine] for owner in device.owners} <= {name.partition("/")[0]}

    def resident(self) -> set[str]:
        return {id_ for id_, r in self.mirror.picture.of(Residency).items() if r.phase is Phase.RESIDENT}

    async def until_resident(self, *models: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.mirror.until(lambda picture: set(models) <= self.resident())


@asynccontextmanager
async def two_nodes(folder: Path, etcd: Etcd) -> AsyncIterator[TwoNodes]:
    async with AsyncExitStack() as stack:
        store = etcd.client()
        stack.push_async_callback(store.close)
        daemons = {}
        for node in ("n1", "n2"):
            (folder / node).mkdir()
            daemons[node] = DaemonProcess(folder / node, etcd.url, node=node, devices=["0:host:64MiB"])
            await stack.enter_context(daemons[node]).ready(store)
        one = await stack.enter_async_context(coordinator(store, models=tuple(PLACES)))
        mirror = Mirror(store)
        mirroring = asyncio.create_task(mirror.run())
        stack.push_async_callback(asyncio.wait, [mirroring])
        stack.callback(mirroring.cancel)
        for name, node in PLACES.items():
            await stack.enter_async_context(
                await LightEngine.start(folder / node, etcd.url, name, node=node, size=SIZE)
            )
        yield TwoNodes(etcd, mirror, one, daemons)


async def take_turns_at_once(nodes: TwoNodes) -> None:
    """Each node's pair takes turns, both nodes at the same time."""
    await asyncio.gather(nodes.ask("abab"), nodes.ask("cdcd"))


async def without_the_second_daemon(nodes: TwoNodes) -> None:
    """Its resident goes on serving, the other node switches, and what slept there is served once it is back."""
    await nodes.until_resident("d")
    daemon = nodes.daemons["n2"]
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait()
    await nodes.ask("abd")
    waiting = asyncio.create_task(nodes.ask("c"))
    await nodes.ask("ab")
    assert not waiting.done()
    daemon.start()
    await waiting
    await take_turns_at_once(nodes)


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[RealEtcd]:
    with running_etcd(tmp_path / "etcd") as running:
        yield running


@pytest.mark.timeout(300)
async def test_two_nodes_switch_side_by_side_and_one_loses_its_daemon(tmp_path: Path, etcd: RealEtcd) -> None:
    async with two_nodes(tmp_path, etcd) as nodes:
        await take_turns_at_once(nodes)
        await without_the_second_daemon(nodes)


@pytest.mark.system
@pytest.mark.timeout(600)
async def test_a_cluster_of_three_loses_its_members_in_turn(tmp_path: Path) -> None:
    async with etcd_cluster(tmp_path) as etcd, two_nodes(tmp_path, etcd) as nodes:
        for member in ("m0", "m1", "m2"):
            await take_turns_at_once(nodes)
            etcd.kill(member)
            await take_turns_at_once(nodes)
            etcd.start(member)
            await etcd.healthy(member)
