"""The client's side of a request: silence while it waits, or news of how its model wakes; then the answer.

News are comments of a server-sent stream, which every client skips that does not look for them. They are sent only to
who asked for a stream and for news, and only once the wait has lasted a little: from the first of them on the status
is 200, and what goes wrong is told by an error event.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from types import TracebackType

import msgspec
from aiohttp import web

from coordinator.gateway.problem import Problem
from coordinator.gateway.sse import error_event
from coordinator.gateway.surface import named_ends

PROGRESS = "X-VNPU-Progress"
"""A client's header: `1` asks for news."""
FIRST_S = 0.25
"""A wait that is over sooner is not told of."""
EVERY_S = 1.0
STALLED_S = 300.0
FRESH_S = 0.25


class News(msgspec.Struct, frozen=True):
    """One comment: the model, its phase, how many requests wait for it here, and for how long this one has."""

    model: str
    phase: str
    waiting: int
    waited_s: float

    def comment(self) -> bytes:
        """One line and an empty one: JSON holds no line end."""
        return b": vnpu " + msgspec.json.encode(self) + b"\n\n"


class Phases:
    """Phases of models, looked up at most every `FRESH_S` however many ask."""

    def __init__(self, look: Callable[[], Mapping[str, str]], clock: Callable[[], float]) -> None:
        self._look = look
        self._clock = clock
        self._seen: Mapping[str, str] = {}
        self._until = float("-inf")

    def of(self, model: str) -> str:
        now = self._clock()
        if now >= self._until:
            self._seen, self._until = self._look(), now + FRESH_S
        return self._seen.get(model, "stopped")


class Reply:
    """One answer; use it by `async with`. `own` are headers of every answer. `news` None: nothing is told before it."""

    def __init__(self, request: web.Request, own: Mapping[str, str], news: Callable[[], bytes] | None = None) -> None:
        self.request = request
        self.own = own
        self._news = news
        self._teller: asyncio.Task[None] | None = None
        self._response: web.StreamResponse | None = None

    async def __aenter__(self) -> Reply:
        if self._news is not None:
            self._teller = asyncio.create_task(self._tell(self._news), name="news")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._hush()

    @property
    def begun(self) -> bool:
        """The client has read news, or a part of the answer."""
        return self._response is not None

    async def open(self, status: int, headers: Mapping[str, str], *, events: bool = False) -> web.StreamResponse:
        """What the answer is written to; the news end. Where some were told, the status is 200 already."""
        await self._hush()
        if self._response is None:
            response = web.StreamResponse(status=status, headers={**headers, **self.own})
            if events:
                response.headers["Cache-Control"] = "no-cache"
                response.headers["X-Accel-Buffering"] = "no"
            await response.prepare(self.request)
            self._response = response
        return self._response

    async def close(self) -> None:
        """The news end, if there are any."""
        await self._hush()

    async def write(self, data: bytes) -> None:
        """Raises ConnectionResetError where the client has read nothing for `STALLED_S`: it must not hold an engine.
        Call `open` before."""
        if self._response is None:
            raise RuntimeError("written before it was opened")
        try:
            async with asyncio.timeout(STALLED_S):
                await self._response.write(data)
        except TimeoutError:
            if self.request.transport is not None:
                self.request.transport.abort()
            raise ConnectionResetError(f"the client has read nothing for {STALLED_S:g} s") from None

    async def fail(self, problem: Problem) -> web.StreamResponse:
        """An error event in the stream that has begun, and a connection that is cut. Call only where it has `begun`."""
        response = await self.open(200, {}, events=True)
        await self.write(error_event(problem, named=bool(named_ends(self.request.path))))
        self.cut()
        return response

    def cut(self) -> None:
        """Close after what is written is out, without the end of the body: no client can take it for complete."""
        if self.request.transport is not None:
            self.request.transport.close()

    async def _tell(self, news: Callable[[], bytes]) -> None:
        await asyncio.sleep(FIRST_S)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", **self.own})
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Accel-Buffering"] = "no"
        with contextlib.suppress(ConnectionResetError):  # the client has left: its handler is cancelled, or soon is
            await response.prepare(self.request)
            self._response = response
            while True:
                await self.write(news())
                await asyncio.sleep(EVERY_S)

    async def _hush(self) -> None:
        teller, self._teller = self._teller, None
        if teller is None:
            return
        teller.cancel()
        await asyncio.wait((teller,))
        if not teller.cancelled():
            teller.result()
