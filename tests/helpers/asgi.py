"""Call an ASGI application in this process, message by message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


class Exchange:
    """One HTTP exchange. `body` arrives in the parts given; `hang_up` disconnects the client."""

    def __init__(
        self,
        app: App,
        path: str = "/v1/completions",
        *,
        method: str = "POST",
        parts: tuple[bytes, ...] = (b"{}",),
        headers: dict[str, str] | None = None,
    ) -> None:
        self.sent: list[Message] = []
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        for i, part in enumerate(parts):
            self._incoming.put_nowait({"type": "http.request", "body": part, "more_body": i + 1 < len(parts)})
        pairs = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
        scope = {"type": "http", "method": method, "path": path, "headers": pairs}
        self.task = asyncio.ensure_future(app(scope, self._incoming.get, self._send))

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    def hang_up(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def end(self) -> Exchange:
        await asyncio.wait_for(self.task, 30)
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.sent[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers with the body it was sent."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
