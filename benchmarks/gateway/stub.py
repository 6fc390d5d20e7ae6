"""An engine that only streams: `python -m benchmarks.gateway.stub` prints its port. First chunk after 20 ms, then 64
chunks of 200 bytes, by hand-written HTTP: it must be several times faster than what is measured.

Whoever asks with `HERD` in the body is answered as engines answer: in steps of 20 ms, all that are due within one of
them in one go at its end."""

from __future__ import annotations

import asyncio
import re
import sys

import uvloop

from benchmarks.gateway.later import Later
from coordinator.process import raise_file_limit

FIRST_S = 0.020
STEP_S = 0.020
HERD = b'"herd"'
CHUNKS = 64
SIZE = 200
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
    b"Connection: keep-alive\r\n\r\n"
)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


EVENT = chunk(b"data: " + b"x" * (SIZE - 8) + b"\n\n")
REST = EVENT * CHUNKS + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
FIRST = HEAD + EVENT


class Engine(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, later: Later, steps: Later) -> None:
        self._later = later
        self._steps = steps
        self._got = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, end, body = self._got.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and len(body) >= (int(length[1]) if length else 0):
            self._got = b""
            (self._steps if HERD in body else self._later).call(self._begin)

    def _begin(self) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(FIRST)
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(REST)


async def serve() -> None:
    loop = asyncio.get_running_loop()
    later, steps = Later(loop, FIRST_S), Later(loop, FIRST_S, STEP_S)
    server = await loop.create_server(lambda: Engine(later, steps), "127.0.0.1", 0, backlog=16384)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    raise_file_limit()
    uvloop.run(serve())
