"""Random lives of several engines on one device, with crashes of everybody: no page is ever anybody else's.

Each engine fills its chunks with its own byte, so a page with two owners shows. A failure names its seed.
"""

from __future__ import annotations

import random
from contextlib import AsyncExitStack

import pytest

from coordinator.core.model import Order
from coordinator.store import keys
from tests.helpers.daemon import DaemonProcess
from tests.helpers.leader import Leader
from tests.helpers.puppet import PuppetRefused
from tests.helpers.puppet_engine import CHUNK, PuppetEngine, puppet_engine

CAPACITY = 32
ENGINES = 3


class Life:
    """One run. `engines` by the byte they fill their chunks with."""

    def __init__(self, daemon: DaemonProcess, leader: Leader, stack: AsyncExitStack, seed: int) -> None:
        self.daemon = daemon
        self.leader = leader
        self.random = random.Random(seed)
        self.engines: dict[int, PuppetEngine] = {}
        self._stack = stack

    @property
    def device(self) -> str:
        return self.daemon.ids[0]

    async def step(self) -> str:
        """One thing happens; what, for the reader of a failure."""
        fill = self.random.randrange(1, ENGINES + 1)
        if fill not in self.engines:
            self.engines[fill] = await self._stack.enter_async_context(puppet_engine(self.daemon, self.leader, "r"))
            return f"engine {fill} starts"
        happening = self.random.choice(
            [
                self.restore,
                self.restore,
                self.restore,
                self.offload,
                self.crash,
                self.restart,
                self.forget,
                self.reclaim,
            ]
        )
        await happening(fill, self.engines[fill])
        return f"{happening.__name__} {fill}"

    async def restore(self, fill: int, engine: PuppetEngine) -> None:
        """Some chunks more, if there is room; with a crash of the daemon in between, sometimes."""
        count = self.random.randrange(1, 16)
        free = CAPACITY - sum(len(other.chunks) for other in self.engines.values())
        fence = await engine.begin()
        if count <= free:
            engine.chunks += await engine.worker.map(self.device, count, fill)
        else:
            with pytest.raises(PuppetRefused, match="no_space"):
                await engine.worker.map(self.device, count, fill)
        if self.random.random() < 0.3:
            await self.restart(fill, engine)
        await engine.leave(fence)

    async def offload(self, fill: int, engine: PuppetEngine) -> None:
        """All of it or a part."""
        going = engine.chunks[: self.random.randrange(0, len(engine.chunks) + 1)]
        fence = await engine.begin(Order.OFFLOAD, size=(len(engine.chunks) - len(going)) * CHUNK)
        await engine.worker.unmap(self.device, going)
        engine.chunks = engine.chunks[len(going) :]
        await engine.leave(fence)

    async def crash(self, fill: int, engine: PuppetEngine) -> None:
        """kill -9 of a process, in an operation or not."""
        if self.random.random() < 0.5:
            await engine.begin()
        self.random.choice([engine.agent, engine.worker]).kill()
        await self.gone(fill, engine)

    async def reclaim(self, fill: int, engine: PuppetEngine) -> None:
        """It hangs, in an operation or not, and the leader has enough of it."""
        if self.random.random() < 0.5:
            await engine.begin()
        else:
            await self.leader.closed(self.device)
        engine.agent.stop()
        engine.worker.stop()
        await self.leader.reclaim(engine.spec)
        await self.gone(fill, engine)

    async def restart(self, fill: int, engine: PuppetEngine) -> None:
        """kill -9 of the daemon."""
        self.daemon.kill()
        await self.daemon.ended()
        self.daemon.start()
        await self.daemon.ready(self.leader.store)

    async def forget(self, fill: int, engine: PuppetEngine) -> None:
        """Its lease ends, with a token that it never enters; it registers again."""
        await self.leader.grant(engine.spec, Order.RESTORE, CHUNK)
        await self.leader.store.revoke_lease(engine.spec.lease)
        engine.spec = await self.leader.register_again(engine.spec)

    async def gone(self, fill: int, engine: PuppetEngine) -> None:
        await engine.agent.ended()
        await engine.worker.ended()
        del self.engines[fill]

    async def check(self) -> None:
        """What is published is what is mapped, and every page holds what its owner wrote."""
        held = {engine.spec.holder: len(engine.chunks) * CHUNK for engine in self.engines.values() if engine.chunks}
        state = await self.leader.until(
            self.device, lambda state: {o.holder: o.bytes.total for o in state.owners} == held and state.open is None
        )
        seat = await self.leader.store.get(keys.seat(self.device))
        assert seat is None or state.closed <= seat.mod_revision
        assert state.charged <= state.capacity
        for fill, engine in self.engines.items():
            fills = await engine.worker.fills()
            assert isinstance(fills, dict)
            assert set(fills.values()) <= {fill}
            assert len(fills) == len(engine.chunks)


async def live(daemon: DaemonProcess, leader: Leader, seed: int, steps: int) -> None:
    async with AsyncExitStack() as stack:
        life = Life(daemon, leader, stack, seed)
        for number in range(steps):
            print(f"seed {seed} step {number}: {await life.step()}")  # noqa: T201
            await life.check()
        for fill, engine in tuple(life.engines.items()):
            await life.crash(fill, engine)
        await life.check()
        await leader.until(life.device, lambda state: state.free_measured == CAPACITY * CHUNK)


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_random_life(own_daemon: DaemonProcess, leader: Leader, seed: int) -> None:
    await live(own_daemon, leader, seed, 15)


@pytest.mark.system
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(10, 16))
async def test_a_long_random_life(own_daemon: DaemonProcess, leader: Leader, seed: int) -> None:
    await live(own_daemon, leader, seed, 60)
