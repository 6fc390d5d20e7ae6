"""A node daemon of which only the connections are real: it hands out one view, and news when a test has some."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from native import protocol
from native.client import Client
from native.connections import Answer, Server
from native.processes import Process
from native.protocol import Code, Done, News, Refused, Viewed, Welcome

CHUNK = 1 << 16
VIEW = 7


class PlayedDaemon:
    """`closed`: what was closed. Who waits for an operation waits for ever."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.closed: list[int] = []
        self.waiting = asyncio.Event()
        """Somebody waits for an operation."""
        self.news: asyncio.Queue[News] = asyncio.Queue()

    def client(self) -> Client:
        return Client(str(self.path), "e", "nonce", "worker")

    async def answer(self, request: protocol.Request) -> Answer:
        match request:
            case protocol.Hello():
                return Answer(Welcome("played", {"0": CHUNK}, 1))
            case protocol.OpenView(view=view) if view == VIEW:
                descriptor = os.memfd_create("chunk")
                os.ftruncate(descriptor, CHUNK)
                return Answer(Viewed("0", (1,), CHUNK, 1), (descriptor,), done=lambda: os.close(descriptor))
            case protocol.CloseView(view=view):
                self.closed.append(view)
                return Answer(Done())
            case protocol.Listen():
                return Answer(await self.news.get())
            case protocol.AwaitOpen():
                self.waiting.set()
                await asyncio.get_running_loop().create_future()
        return Answer(Refused(Code.BAD_REQUEST, "not played"))


class _Session:
    def __init__(self, daemon: PlayedDaemon, process: Process) -> None:
        self._daemon, self._process = daemon, process

    async def handle(self, request: protocol.Request, beside: Sequence[int] = ()) -> Answer:
        return await self._daemon.answer(request)

    def closed(self) -> None:
        self._process.close()


@asynccontextmanager
async def played_daemon(folder: Path) -> AsyncIterator[PlayedDaemon]:
    daemon = PlayedDaemon(folder / "daemon.sock")
    server = Server(daemon.path, lambda process: _Session(daemon, process))
    running = asyncio.create_task(server.run())
    try:
        yield daemon
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        server.close()
