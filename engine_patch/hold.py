"""A request that is held: read ahead to notice that its client went away, replayed to the application afterwards."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
"""ASGI 3.0's shapes (https://asgi.readthedocs.io)."""

READ_AHEAD = 16 << 20
"""Body bytes read ahead at most; a longer body is left to the server's flow control, its disconnect is seen later."""


class Hold:
    """Wraps an ASGI `receive`. No message is lost or reordered, whenever `gone` is cancelled."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read: deque[Message] = deque()
        self._pending: asyncio.Future[Message] | None = None

    async def gone(self) -> None:
        """Return when the client has disconnected."""
        size = 0
        while size <= READ_AHEAD:
            message = await self._next()
            self._read.append(message)
            if message["type"] == "http.disconnect":
                return
            size += len(message.get("body", b""))
        await asyncio.get_running_loop().create_future()

    async def receive(self) -> Message:
        """The application's `receive`: what was read ahead, then the rest."""
        return self._read.popleft() if self._read else await self._next()

    async def _next(self) -> Message:
        if self._pending is None:
            self._pending = asyncio.ensure_future(self._receive())
        message = await asyncio.shield(self._pending)
        self._pending = None
        return message

    def close(self) -> None:
        """Nobody reads any more."""
        if self._pending is not None:
            self._pending.cancel()
