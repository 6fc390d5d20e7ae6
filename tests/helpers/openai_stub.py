"""An OpenAI-like server for tests: it remembers what it was sent and does what it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

Behaviour = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


@dataclass
class Seen:
    """One request as it arrived. `body` is empty where it is no JSON."""

    path: str
    headers: CIMultiDict[str]
    body: dict[str, Any]
    raw: bytes = b""


@dataclass
class OpenAIStub:
    """`behave` answers completions; `seen` are the requests, `cancelled` counts clients that went away."""

    name: str = "stub"
    behave: Behaviour | None = None
    seen: list[Seen] = field(default_factory=list)
    cancelled: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if request.content_type == "application/json" else {}
        self.seen.append(Seen(request.path, CIMultiDict(request.headers), body, raw))
        self.changed.set()
        try:
            return await (self.behave or self.answer)(request, body)
        except asyncio.CancelledError:
            self.cancelled += 1
            self.changed.set()
            raise

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """A whole answer, or a stream of three tokens."""
        if body.get("stream"):
            return await stream(request, self.tokens(body), done=True)
        return web.json_response({"id": "1", "model": body.get("model"), "choices": [{"text": f"from {self.name}"}]})

    def tokens(self, body: dict[str, Any]) -> list[bytes]:
        return [event({"model": body["model"], "choices": [{"text": f"{self.name}-{n}"}]}) for n in range(3)]

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until `reached()`, looked at after each request and each disconnect."""
        while not reached():
            self.changed.clear()
            await self.changed.wait()


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


async def begin_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    return response


async def stream(request: web.Request, chunks: list[bytes], *, done: bool) -> web.StreamResponse:
    """`chunks`, then the end of a stream, or (not `done`) a connection that just ends."""
    response = await begin_stream(request)
    for chunk in chunks:
        await response.write(chunk)
    if done:
        await response.write(b"data: [DONE]\n\n")
    else:
        assert request.transport is not None
        request.transport.close()
    return response


@asynccontextmanager
async def serving(stub: OpenAIStub) -> AsyncIterator[OpenAIStub]:
    """The stub on a free loopback port."""
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/{path:.+}", stub.handle)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    stub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield stub
    finally:
        await runner.cleanup()
