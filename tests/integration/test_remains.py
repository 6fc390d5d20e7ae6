"""An engine that comes back to a device copies only what others have needed the pages of: real memory hands and agents,
the real daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.core.model import Order
from tests.helpers.etcd import RealEtcd
from tests.helpers.light_engine import LightEngine
from tests.helpers.light_lab import LightLab, light_lab

MIB = 1 << 20
WEIGHTS = 22 * MIB
KV = 4096
"""Of a prompt, saved at each switch."""
CAPACITY = 36 * MIB


@pytest.fixture
async def lab(tmp_path: Path, etcd: RealEtcd) -> AsyncIterator[LightLab]:
    async with light_lab(tmp_path, etcd, CAPACITY) as one:
        yield one


async def asleep(lab: LightLab, size: int = WEIGHTS) -> tuple[LightEngine, object]:
    """An engine that has answered once and left, and its answer."""
    engine = await lab.bring_up(size=size)
    answer = await engine.ask("prompt")
    await lab.order(engine, Order.OFFLOAD)
    return engine, answer


async def cached(lab: LightLab) -> int:
    """MiB of free pages that somebody may come back to."""
    return (await lab.leader.closed(lab.device)).cached // MIB


async def test_nothing_is_copied_while_nobody_needed_the_pages(lab: LightLab) -> None:
    engine, answer = await asleep(lab)
    async with engine:
        for _ in range(3):
            assert await cached(lab) == WEIGHTS // MIB
            assert (await lab.order(engine, Order.RESTORE)).restored == KV
            assert await cached(lab) == 0
            assert await engine.ask("prompt") == answer
            await lab.order(engine, Order.OFFLOAD)


async def test_what_others_needed_is_copied_and_nothing_else(lab: LightLab) -> None:
    first, answer = await asleep(lab)
    async with first:
        second, others = await asleep(lab, 16 * MIB)
        async with second:
            assert 0 < await cached(lab) <= (CAPACITY - 2 * MIB) // MIB
            copied = (await lab.order(first, Order.RESTORE)).restored
            assert KV < copied < WEIGHTS + KV
            assert await first.ask("prompt") == answer
            await lab.order(first, Order.OFFLOAD)
            await lab.order(second, Order.RESTORE)
            assert await second.ask("prompt") == others


async def test_who_needs_all_pages_gets_them(lab: LightLab) -> None:
    first, answer = await asleep(lab)
    async with first:
        second, _ = await asleep(lab, 32 * MIB)
        async with second:
            assert (await lab.order(first, Order.RESTORE)).restored == WEIGHTS + KV
            assert await first.ask("prompt") == answer


async def test_who_writes_to_its_weights_gets_them_as_they_were_sealed(lab: LightLab) -> None:
    """A sample differs, so all is copied, and nothing is left behind from then on. An engine like it is no other's
    business: its answers are what they were."""
    async with await lab.bring_up(size=WEIGHTS, fault="write") as engine:
        answer = await engine.ask("prompt")
        for _ in range(2):
            await lab.order(engine, Order.OFFLOAD)
            assert (await lab.order(engine, Order.RESTORE)).restored == WEIGHTS + KV
            assert await engine.ask("prompt") == answer
        await lab.order(engine, Order.OFFLOAD)
        assert await cached(lab) == 0
        assert engine.log.read_text().count("something writes to the weights") == 1
