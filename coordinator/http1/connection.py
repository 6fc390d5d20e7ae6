"""One client's connection: requests one after the other, each answered by a task of its own."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from coordinator.http1.head import MOST_BYTES, Fields, HeadTooLarge, request_head, status_head
from coordinator.http1.request import Request, path_of
from coordinator.http1.response import Response

log = logging.getLogger(__name__)

LINGER_S: Final = 2.0
"""For so long a client may go on sending what nobody reads: closing at once could take the answer away from it."""
STALLS: Final = 30
"""Times LINGER_S: for so long it may read nothing of the answer."""

Handle = Callable[[Request, Response], Awaitable[None]]


class Connections(set["Connection"]):
    """Of one server. `closing`: no request after the running one is taken."""

    closing = False
    _emptied: asyncio.Future[None] | None = None

    def left(self, connection: Connection) -> None:
        self.discard(connection)
        if not self and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    async def emptied(self, timeout_s: float) -> None:
        """Until none is open, or the time is up."""
        if self:
            self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._emptied,), timeout=timeout_s)


class Connection(asyncio.Protocol):
    """Answers by `handle`, which is cancelled when the client leaves. Adds itself to `others` while it is open."""

    def __init__(self, handle: Handle, others: Connections) -> None:
        self._handle = handle
        self._others = others
        self._loop = asyncio.get_running_loop()
        self._parser: HttpRequestParser | None = None
        self._transport: asyncio.Transport
        self._fields = Fields()
        self.on_header = self._fields.add
        self._target = b""
        self._head_bytes: int | None = None
        self._arriving: Request | None = None
        self._next: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._continues = False
        self._held = self._lost = self._leaving = self._began = self._made_up = False
        self._drain: asyncio.Future[None] | None = None
        self._end: asyncio.TimerHandle | None = None
        self.congested = False
        self.idle_since: float | None = self._loop.time()

    # What the network says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = HttpRequestParser(self)
        self._others.add(self)

    def data_received(self, data: bytes) -> None:
        if self._leaving or self._parser is None:
            return
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._stay_with_http(data[upgrade.args[0] :])
        except HttpParserCallbackError as error:
            self._refuse(431 if isinstance(error.__context__, HeadTooLarge) else 400)
        except HttpParserError:
            self._refuse(400)
        else:
            self._weigh(len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._leaving = True
        self._parser = None
        self._others.left(self)
        if self._end is not None:
            self._end.cancel()
        self.resume_writing()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self.congested = True
        self._drain = self._loop.create_future()

    def resume_writing(self) -> None:
        self.congested = False
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)
        self._drain = None

    def _stay_with_http(self, rest: bytes) -> None:
        """A request that would rather have another protocol (h2c) is answered in this one (RFC 9110 section 7.8). The
        parser stops before its body, which another one reads after a head that says the same of the body."""
        if self._arriving is None:
            return
        headers = self._arriving.headers
        framing = {name: headers[name] for name in ("Content-Length", "Transfer-Encoding") if name in headers}
        self._parser = HttpRequestParser(self)
        self._made_up = True
        self.data_received(request_head("POST", "/", framing) + rest)

    def _weigh(self, size: int) -> None:
        """A head that has not come whole may not grow without end; `Fields` bounds those that have."""
        if self._head_bytes is not None:
            self._head_bytes += size
            if self._head_bytes > 2 * MOST_BYTES and not self._began:
                self._refuse(431)
        self._began = False

    # What the parser says.

    def on_message_begin(self) -> None:
        self._head_bytes, self._began = 0, True

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > MOST_BYTES:
            raise HeadTooLarge("the target is too long")

    def on_headers_complete(self) -> None:
        parser, headers = self._parser, self._fields.take()
        if parser is None:
            raise ConnectionResetError("the client has left")
        target, self._target = self._target, b""
        self._head_bytes = None
        if self._made_up:
            self._made_up = False
            return
        path = path_of(target, headers.get("Host", ""))
        if path is None:
            raise ValueError("no path of this server")
        modern = parser.get_http_version() == "1.1"
        persists = modern and parser.should_keep_alive()
        request = Request(parser.get_method().decode(), path, headers, self, modern=modern, persists=persists)
        self._continues = modern and headers.get("Expect", "").lower() == "100-continue"
        self._arriving = request
        if self._task is None:
            self._begin(request)
        else:
            self._next.append(request)
            self.hold()

    def on_body(self, data: bytes) -> None:
        if self._arriving is not None:
            self._arriving.feed(data)

    def on_message_complete(self) -> None:
        if self._parser is not None and self._parser.should_upgrade():
            return  # its body is still to come
        if self._arriving is not None:
            self._arriving.end()
            self._arriving = None

    # What a request's reader and its answer want.

    def hold(self) -> None:
        if not self._held and not self._lost:
            self._held = True
            self._transport.pause_reading()

    def go_on(self) -> None:
        if self._continues:
            self._continues = False
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._held and not self._lost and not self._next:
            self._held = False
            self._transport.resume_reading()

    @property
    def stays(self) -> bool:
        return not (self._leaving or self._others.closing)

    def send(self, data: bytes) -> None:
        if not self._lost:
            self._transport.write(data)

    def drop(self) -> None:
        self._leaving = True
        if not self._lost:
            self._transport.close()

    def abort(self) -> None:
        self._leaving = True
        if not self._lost:
            self._transport.abort()

    async def drained(self) -> None:
        if self._drain is not None:
            await asyncio.shield(self._drain)
        if self._lost:
            raise ConnectionResetError("the client has left")

    # One request after the other.

    @property
    def task(self) -> asyncio.Task[None] | None:
        """Answers the running request."""
        return self._task

    def _begin(self, request: Request) -> None:
        self.idle_since = None
        self._task = self._loop.create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        response = Response(request, self)
        try:
            await self._handle(request, response)
            response.end()
        except ConnectionResetError:
            pass  # the client left between two words
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            if not response.begun:
                self._leaving = True
                response.whole(500, {}, b"")
        finally:
            self._task = None
            self._answered(response)

    def _answered(self, response: Response) -> None:
        if self._lost or self._end is not None or self._transport.is_closing():
            return
        if not response.ended:
            self.abort()
        elif response.last or not self.stays:
            self._leave()
        elif self._next:
            self._begin(self._next.popleft())
            self.go_on()
        else:
            self.idle_since = self._loop.time()
            self.go_on()

    def _refuse(self, status: int) -> None:
        """What came is no HTTP, or too much of it. A request that was whole before is still answered."""
        self._leaving = True
        if self._task is not None and self._arriving is None:
            return
        if self._task is not None:
            self._task.cancel()
        self.send(status_head(status, {"Content-Length": "0", "Connection": "close"}))
        self._leave()

    def _leave(self) -> None:
        """Close, but read for a while what the client still sends."""
        self._leaving = True
        if self._held:
            self._held = False
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._linger(self._transport.get_write_buffer_size(), STALLS)
        else:
            self._transport.close()

    def _linger(self, unsent: int, stalls: int) -> None:
        """Until the client has closed, or LINGER_S after it has read everything."""

        def look() -> None:
            left = self._transport.get_write_buffer_size()
            if left and (left < unsent or stalls > 1):
                self._linger(left, STALLS if left < unsent else stalls - 1)
            elif unsent and not left:
                self._linger(0, 0)
            else:
                self._transport.abort()

        self._end = self._loop.call_later(LINGER_S, look)
