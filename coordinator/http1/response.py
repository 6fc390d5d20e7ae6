"""An answer on its way to a client: whole, or as it comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from coordinator.http1.head import status_head
from coordinator.http1.request import Request


class Sink(Protocol):
    """A client's connection."""

    @property
    def stays(self) -> bool:
        """Whether it is kept for another request, as far as this side knows."""

    def send(self, data: bytes) -> None:
        """Nothing where the client has left: whoever answers is about to be cancelled."""

    def drop(self) -> None:
        """Close when what was sent is out."""

    def abort(self) -> None:
        """Close at once."""

    @property
    def congested(self) -> bool:
        """The client does not read."""

    async def drained(self) -> None:
        """Until the client has read. Raises ConnectionResetError where it has left."""


class Response:
    """Either `whole`, or `start`, some `write`, then `end` or `cut`. `status` is 0 before. `last`: the client was told
    that nothing comes after it."""

    __slots__ = ("_chunked", "_ended", "_request", "_sink", "_unsent", "last", "status")

    def __init__(self, request: Request, sink: Sink) -> None:
        self._request = request
        self._sink = sink
        self._unsent = b""
        self._chunked = False
        self._ended = False
        self.status = 0
        self.last = False

    @property
    def begun(self) -> bool:
        return self.status != 0

    @property
    def ended(self) -> bool:
        """As it should: the client can tell that nothing is missing."""
        return self._ended

    def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        head = status_head(status, {**headers, "Content-Length": str(len(body)), **self._connection()})
        self._sink.send(head if self._request.method == "HEAD" else head + body)
        self._ended = True

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Its head goes out with the first bytes, or by `flush`."""
        self.status = status
        self._chunked = self._request.modern
        coding = {"Transfer-Encoding": "chunked"} if self._chunked else {}
        self._unsent = status_head(status, {**headers, **coding, **self._connection()})

    def flush(self) -> None:
        """The head goes out, if it has not."""
        if self._unsent:
            self._sink.send(self._unsent)
            self._unsent = b""

    def write(self, data: bytes, *, last: bool = False) -> None:
        """Call `drained` where it is `congested` then. `last`: and `end`, at once."""
        if self._chunked:
            end = b"0\r\n\r\n" if last else b""
            data = b"%b%x\r\n%b\r\n%b" % (self._unsent, len(data), data, end) if data else self._unsent + end
        else:
            data = self._unsent + data
        self._unsent = b""
        self._ended = last
        if data:
            self._sink.send(data)

    def end(self) -> None:
        """All is written; without `start` nothing happens."""
        if self.begun and not self._ended:
            self.write(b"", last=True)

    def cut(self) -> None:
        """Close after what is written is out, without the end of the body: no client can take it for complete."""
        self.flush()
        self._sink.drop()

    def abort(self) -> None:
        """Close at once, whatever is not out yet."""
        self._sink.abort()

    @property
    def congested(self) -> bool:
        return self._sink.congested

    async def drained(self) -> None:
        """Raises ConnectionResetError where the client has left."""
        await self._sink.drained()

    def _connection(self) -> dict[str, str]:
        """An answer before the body is read ends the connection: what would be the next request's start?"""
        self.last = not (self._request.persists and self._request.whole and self._sink.stays)
        return {"Connection": "close"} if self.last else {}
