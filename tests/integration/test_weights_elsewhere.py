"""No room in host memory for the weights of an engine that leaves, and another engine that has them: real memory hands,
real daemon, real etcd; the other engine is a source in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from coordinator.core.model import Order, Phase
from tests.helpers.etcd import RealEtcd
from tests.helpers.light_engine import LightEngine
from tests.helpers.light_lab import LightLab, light_lab
from tests.helpers.light_peers import LightRank, serving
from transfer.transports.channel import Channel
from transfer.transports.outgoing import Block

MIB = 1 << 20
SIZE = 6 * MIB


@pytest.fixture
async def lab(tmp_path: Path, etcd: RealEtcd) -> AsyncIterator[LightLab]:
    """Host memory for one master, and for what two engines save of their KV."""
    async with light_lab(tmp_path, etcd, 64 * MIB, host_ram="14MiB") as one:
        yield one


@asynccontextmanager
async def crowded(lab: LightLab) -> AsyncIterator[tuple[LightEngine, LightEngine]]:
    """One that sleeps, whose master takes the room, and one that is resident and has none."""
    async with (
        await lab.bring_up(size=SIZE) as sleeper,
        await lab.bring_up(size=SIZE, content="w", claims="w", fault="forget") as engine,
    ):
        await lab.order(sleeper, Order.OFFLOAD)
        yield engine, sleeper


async def test_weights_that_had_no_room_come_from_who_has_them(lab: LightLab) -> None:
    async with crowded(lab) as (engine, sleeper), serving(lab, LightRank("w", "w", SIZE)):
        before = await engine.ask("prompt")
        for _ in range(2):
            offloaded = await lab.order(engine, Order.OFFLOAD)
            assert (offloaded.phase, offloaded.held.total, offloaded.d2h) == (Phase.OFFLOADED, 0, 0)
            restored = await lab.order(engine, Order.RESTORE)
            assert restored.phase is Phase.RESIDENT
            assert "fetch" in {step.name for step in restored.steps}
            assert await engine.ask("prompt") == before
        await lab.order(sleeper, Order.RESTORE)  # its master can go now, and the other's is made out of its pages
        offloaded = await lab.order(engine, Order.OFFLOAD)
        assert offloaded.d2h == SIZE
        restored = await lab.order(engine, Order.RESTORE)
        assert "fetch" not in {step.name for step in restored.steps}
        assert await engine.ask("prompt") == before


Serve = Callable[[Channel], None]
Wrap = Callable[[Serve], Serve]


def honest(serve: Serve) -> Serve:
    return serve


def dying(serve: Serve) -> Serve:
    """Each connection ends before the third block."""

    def answer(channel: Channel) -> None:
        send = channel.send_run

        def some(blocks: Sequence[Block], *args: Any, **more: Any) -> int:
            if blocks[0].position == 2:
                channel.abort()
            return send(blocks[:1], *args, **more)

        channel.send_run = some  # type: ignore[method-assign]
        serve(channel)

    return answer


@pytest.mark.parametrize(
    ("content", "serve", "why"),
    [("w", dying, "no source is left"), ("lies", honest, "gave other weights")],
    ids=["dies", "lies"],
)
async def test_who_gets_nothing_or_something_else_ends_and_never_answers(
    lab: LightLab, content: str, serve: Wrap, why: str
) -> None:
    rank = LightRank(content, "w", SIZE)
    async with crowded(lab) as (engine, sleeper), serving(lab, rank, serve=serve):
        await lab.order(engine, Order.OFFLOAD)
        await lab.grant(engine, Order.RESTORE)
        assert await engine.ended() != 0
        assert why in engine.log.read_text()
        assert "raise --host-ram" in engine.log.read_text()
        await lab.order(sleeper, Order.RESTORE)
        assert (await sleeper.ask("prompt"))[0] == 200
