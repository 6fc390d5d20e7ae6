"""An engine for tests of the daemon: its spec in etcd, an agent process, worker processes, moved by the test."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from coordinator.core.model import Order
from tests.helpers.daemon import DaemonProcess
from tests.helpers.leader import Granted, Leader, Registered
from tests.helpers.puppet import Puppet

CHUNK = 2 << 20
"""Of a device under 512 MiB, bytes."""
ROOM = 1 << 30
"""A grant that is never the limit, bytes."""
_ids = itertools.count()


@dataclass
class PuppetEngine:
    """`device` is the first of its devices, as the daemon's clients name it."""

    leader: Leader
    spec: Registered
    agent: Puppet
    workers: list[Puppet]
    chunks: list[int] = field(default_factory=list)

    @property
    def worker(self) -> Puppet:
        return self.workers[0]

    @property
    def device(self) -> str:
        return self.spec.devices[0]

    async def begin(self, order: Order = Order.RESTORE, *, size: int = ROOM, limit_s: float = 60.0) -> Granted:
        """Granted and entered: the operation is open."""
        fence = await self.leader.grant(self.spec, order, size, limit_s=limit_s)
        await self.enter(fence)
        return fence

    async def enter(self, fence: Granted, *, timeout_s: float = 30.0) -> None:
        for device in self.spec.devices:
            await self.agent.enter(device, fence.epoch, fence.revision, timeout_s)

    async def leave(self, fence: Granted) -> None:
        for device in self.spec.devices:
            await self.agent.leave(device, fence.epoch, fence.revision)

    async def restore(self, count: int, fill: int) -> Granted:
        """A whole restore of `count` chunks by the first worker, each filled with the byte `fill`."""
        fence = await self.begin()
        self.chunks += await self.worker.map(self.device, count, fill)
        await self.leave(fence)
        return fence

    async def offload(self) -> Granted:
        """Everything goes."""
        fence = await self.begin(Order.OFFLOAD, size=0)
        await self.worker.unmap(self.device, self.chunks)
        self.chunks.clear()
        await self.leave(fence)
        return fence


@asynccontextmanager
async def puppet_engine(
    daemon: DaemonProcess,
    leader: Leader,
    name: str = "a",
    *,
    devices: tuple[str, ...] = (),
    workers: int = 1,
) -> AsyncIterator[PuppetEngine]:
    """On the daemon's first device unless said otherwise; all its processes have said hello. Killed at the end."""
    spec = await leader.register(f"{daemon.node}-{name}-{next(_ids)}", devices or tuple(daemon.ids[:1]))
    async with AsyncExitStack() as stack:
        roles = [("agent", 0), *(("worker", rank) for rank in range(workers))]
        puppets = [
            await stack.enter_async_context(
                await Puppet.start(daemon.socket, spec.holder.engine, spec.holder.nonce, role, rank)
            )
            for role, rank in roles
        ]
        for puppet in puppets:
            puppet.send("hello")
        for puppet in puppets:
            await puppet.answer()
        yield PuppetEngine(leader, spec, puppets[0], puppets[1:])
