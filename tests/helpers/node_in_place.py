"""The whole node in the test's process, with etcd in memory and a disk that can be held up or fail."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from coordinator.store.memory import MemoryEtcd
from native import protocol
from native.daemon.node import Node
from native.daemon.options import DeviceOption, Options
from native.daemon.session import EngineSession
from native.journal import Ledger
from native.processes import Identity, boot_id, reopen, start_time
from native.protocol import Answer, Enter, Hello, Kind, Leave, Map
from tests.helpers.leader import Granted, Leader, Registered

PATIENCE_S = 60.0
MIB = 1 << 20
CHUNK = 2 * MIB


class Disk:
    """A journal in memory."""

    path = Path("ledger")

    def __init__(self) -> None:
        self.last: Ledger | None = None
        self.full = False
        self.free = threading.Event()
        self.free.set()

    def load(self) -> Ledger | None:
        return self.last

    def write(self, ledger: Ledger) -> None:
        self.free.wait()
        if self.full:
            raise OSError(28, "No space left on device")
        self.last = ledger


@dataclass
class Place:
    """A running node with one registered engine, and a session of each role. `process` is who they are."""

    node: Node
    disk: Disk
    leader: Leader
    spec: Registered
    agent: EngineSession
    worker: EngineSession
    process: subprocess.Popen[bytes]

    @property
    def device(self) -> str:
        return self.spec.devices[0]

    async def enter(self, fence: Granted) -> protocol.Reply:
        return (await self.agent.handle(Enter(self.device, fence.epoch, fence.revision, 30.0))).reply

    async def leave(self, fence: Granted, answer: Answer | None = None) -> protocol.Reply:
        return (await self.agent.handle(Leave(self.device, fence.epoch, fence.revision, answer))).reply

    async def map(self, ticket: int) -> protocol.Reply:
        return (await self.worker.handle(Map(self.device, Kind.KV, 1, ticket, 5.0))).reply

    @property
    def closed_on_disk(self) -> int:
        assert self.disk.last is not None
        return self.disk.last.devices["0"].record.closed


@asynccontextmanager
async def place(folder: Path) -> AsyncIterator[Place]:
    disk, store = Disk(), MemoryEtcd().client()
    options = Options("n", (), folder / "s", folder, (DeviceOption("0", "host", 8 * MIB),))
    node = Node(options, disk, store)  # type: ignore[arg-type]
    running = asyncio.create_task(node.run())
    leader = Leader(store)
    await leader.elect()
    spec = await leader.register("a", ("n/0",))
    process = subprocess.Popen(["sleep", "1000"])  # noqa: ASYNC220
    identity = Identity(process.pid, start_time(process.pid), boot_id())
    sessions = []
    for role in ("agent", "worker"):
        sessions.append(EngineSession(node, reopen(identity)))
        await sessions[-1].handle(Hello("a", spec.holder.nonce, role))
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield Place(node, disk, leader, spec, sessions[0], sessions[1], process)
    finally:
        process.kill()
        process.wait()
        disk.free.set()
        running.cancel()
        await asyncio.wait((running,))
        if not running.cancelled():
            running.result()
