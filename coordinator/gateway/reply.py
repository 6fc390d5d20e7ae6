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

from coordinator.gateway.problem import Problem
from coordinator.gateway.sse import error_event
from coordinator.gateway.surface import named_ends
from coordinator.http1.request import Request
from coordinator.http1.response import Response

PROGRESS = "X-VNPU-Progress"
"""A client's header: `1` asks for news."""
FIRST_S = 0.25
"""A wait that is over sooner is not told of."""
EVERY_S = 1.0
STALLED_S = 300.0
FRESH_S = 0.25
_EVENTS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


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

    def __init__(
        self, request: Request, response: Response, own: Mapping[str, str], news: Callable[[], bytes] | None = None
    ) -> None:
        self.request = request
        self.own = own
        self._response = response
        self._news = news
        self._teller: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Reply:
        if self._news is not None:
            self._teller = asyncio.create_task(self._tell(self._news), name="news")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._teller is not None:
            await self._hush()

    @property
    def begun(self) -> bool:
        """The status has gone out: what goes wrong from now on is told in the stream."""
        return self._response.begun

    async def open(self, status: int, headers: Mapping[str, str], *, events: bool = False) -> None:
        """The answer begins; the news end. Where some were told, the status is 200 already."""
        if self._teller is not None:
            await self._hush()
        if not self.begun:
            self._response.start(status, {**headers, **(_EVENTS if events else {}), **self.own})

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """An answer that was not begun."""
        await self._hush()
        self._response.whole(status, {**headers, **self.own}, body)

    async def close(self) -> None:
        """The news end, if there are any."""
        await self._hush()

    def flush(self) -> None:
        """What was opened is seen, though nothing was written."""
        self._response.flush()

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Raises ConnectionResetError where the client has read nothing for `STALLED_S`: it must not hold an engine.
        Call `open` before. `last`: nothing comes after it."""
        self._response.write(data, last=last)
        if self._response.congested:
            await self.drained()

    def put(self, data: bytes) -> bool:
        """As `write`, without waiting; False: the client does not read, `drained` comes next."""
        self._response.write(data)
        return not self._response.congested

    async def drained(self) -> None:
        """Until the client has read. Raises as `write`."""
        if not self._response.congested:
            return
        try:
            async with asyncio.timeout(STALLED_S):
                await self._response.drained()
        except TimeoutError:
            self._response.abort()
            raise ConnectionResetError(f"the client has read nothing for {STALLED_S:g} s") from None

    async def fail(self, problem: Problem) -> None:
        """An error event in the stream that has begun, and a connection that is cut. Call only where it has `begun`."""
        await self._hush()
        await self.write(error_event(problem, named=bool(named_ends(self.request.path))))
        self.cut()

    def cut(self) -> None:
        """Close after what is written is out, without the end of the body: no client can take it for complete."""
        self._response.cut()

    async def _tell(self, news: Callable[[], bytes]) -> None:
        await asyncio.sleep(FIRST_S)
        self._response.start(200, {"Content-Type": "text/event-stream; charset=utf-8", **_EVENTS, **self.own})
        with contextlib.suppress(ConnectionResetError):  # the client has left: its handler is cancelled, or soon is
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
