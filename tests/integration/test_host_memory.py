"""Host memory that does not hold a master of every engine, and a daemon that dies under engines: real engines' memory
hands, real daemon, real kills."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.core.model import Order, Phase
from native.link import read_stats
from tests.helpers.etcd import RealEtcd
from tests.helpers.light_lab import LightLab, light_lab

MIB = 1 << 20


@pytest.fixture
def host_ram() -> str:
    return "0"


@pytest.fixture
async def lab(tmp_path: Path, etcd: RealEtcd, host_ram: str) -> AsyncIterator[LightLab]:
    async with light_lab(tmp_path, etcd, 64 * MIB, host_ram=host_ram) as one:
        yield one


async def stats(lab: LightLab) -> dict[str, dict[str, int]]:
    told: dict[str, dict[str, int]] = json.loads(await asyncio.to_thread(read_stats, str(lab.daemon.socket)))
    return told


@pytest.mark.parametrize("host_ram", ["14MiB"])
async def test_a_resident_engine_lends_its_masters_room_and_copies_out_when_it_leaves(lab: LightLab) -> None:
    """Room for two buffers of saved KV and one master, and two contents: 6 MiB (8 with its last chunk) each."""
    async with await lab.bring_up() as first:
        before = await first.ask("prompt")
        async with await lab.bring_up() as second:
            others = await second.ask("prompt")
            assert (await stats(lab))["host_ram"]["evicted"] == 1
            for _ in range(3):
                offloaded = await lab.order(first, Order.OFFLOAD)
                assert (offloaded.held.total, offloaded.d2h) == (0, 6 * MIB)
                await lab.order(first, Order.RESTORE)
                assert await first.ask("prompt") == before
                offloaded = await lab.order(second, Order.OFFLOAD)
                assert (offloaded.held.total, offloaded.d2h) == (0, 6 * MIB)
                await lab.order(second, Order.RESTORE)
                assert await second.ask("prompt") == others


@pytest.mark.parametrize("host_ram", ["14MiB"])
async def test_the_only_copy_of_what_sleeps_stays(lab: LightLab) -> None:
    """Who finds no room for what it would have to keep ends, and is read from disk at its next start."""
    async with await lab.bring_up() as first, await lab.bring_up() as second:
        before = await first.ask("prompt")
        await lab.order(first, Order.OFFLOAD)
        await lab.grant(second, Order.OFFLOAD)
        await second.ended()
        assert "cannot be kept in host memory" in second.log.read_text()
        assert "raise --host-ram" in second.log.read_text()
        await lab.order(first, Order.RESTORE)
        assert await first.ask("prompt") == before


async def test_a_daemon_dies_under_a_sleeping_and_a_resident_engine(lab: LightLab) -> None:
    """Both give it back what they have; nothing is read anew, and a switch goes on as ever."""
    async with await lab.bring_up() as first:
        before = await first.ask("prompt")
        await lab.order(first, Order.OFFLOAD)
        async with await lab.bring_up() as second:
            others = await second.ask("prompt")
            masters = (await stats(lab))["masters"]
            for _ in range(2):
                lab.daemon.kill()
                await lab.daemon.ended()
                assert await second.ask("prompt") == others
                lab.daemon.start()
                await lab.daemon.ready(lab.store)
                offloaded = await lab.order(second, Order.OFFLOAD)
                assert offloaded.d2h == 0
                await lab.order(first, Order.RESTORE)
                assert await first.ask("prompt") == before
                found = await stats(lab)
                assert found["masters"] == masters
                assert found["devices"]["0"]["pool"]["foreign"] == 0  # type: ignore[index]
                await lab.order(first, Order.OFFLOAD)
                restored = await lab.order(second, Order.RESTORE)
                assert restored.phase is Phase.RESIDENT
                assert await second.ask("prompt") == others
