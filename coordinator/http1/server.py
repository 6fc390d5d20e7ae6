"""Listens on one address, tells its URL, ends in order."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from coordinator.http1.connection import Connection, Connections, Handle

log = logging.getLogger(__name__)

IDLE_S: Final = 75.0
"""For a connection without a request, or whose head does not come whole."""
SWEEP_S: Final = 5.0
BACKLOG: Final = 4096
END_S: Final = 1.0


class Server:
    """`handle(request, response)` on `host:port` (port 0: a free one)."""

    def __init__(self, handle: Handle, host: str, port: int, drain_s: float) -> None:
        self._handle = handle
        self._host = host
        self._port = port
        self._drain_s = drain_s
        self._open = Connections()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self) -> str:
        """Returns the URL. Raises OSError when the address cannot be listened on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._handle, self._open), self._host, self._port, backlog=BACKLOG
        )
        self._port = int(self._server.sockets[0].getsockname()[1])
        self._sweeper = loop.call_later(SWEEP_S, self._sweep)
        return self.url

    @property
    def url(self) -> str:
        """`http://host:port` as configured: a wildcard host stays one."""
        return f"http://[{self._host}]:{self._port}" if ":" in self._host else f"http://{self._host}:{self._port}"

    @property
    def connections(self) -> int:
        """That are open."""
        return len(self._open)

    async def close(self) -> None:
        """Stop listening, close idle connections, give running requests `drain_s` to end, then cancel them."""
        self._open.closing = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._open):
            if connection.task is None:
                connection.drop()
        if running := [each.task for each in self._open if each.task is not None]:
            await asyncio.wait(running, timeout=self._drain_s)
        if running := [each.task for each in self._open if each.task is not None]:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=END_S)
        await self._open.emptied(END_S)  # what was written goes out
        for connection in tuple(self._open):
            connection.abort()
        await self._open.emptied(END_S)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        for connection in tuple(self._open):
            if connection.idle_since is not None and loop.time() - connection.idle_since > IDLE_S:
                connection.drop()
        self._sweeper = loop.call_later(SWEEP_S, self._sweep)
