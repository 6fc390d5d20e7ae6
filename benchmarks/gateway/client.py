"""The client, the same for every path: so many streams at once, each of which asks again as soon as it was answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from time import perf_counter

import msgspec

WARM_S = 0.2
LIMIT_S = 120.0
AT_ONCE = 200
ASK = {"model": "m", "stream": True, "prompt": "x" * 200}
BODY = json.dumps(ASK).encode()
HERD = json.dumps({**ASK, "herd": True}).encode()
"""To be answered together with all others that are due within a step (`stub.HERD`)."""
END = b"0\r\n\r\n"


class Run(msgspec.Struct):
    """What one run saw: answers a second, seconds to the first event of each, how many went wrong, and how many were
    answered in all, before and after what was measured too."""

    rps: float = 0.0
    answers: int = 0
    ttft: list[float] = []
    failed: int = 0


class Stream(asyncio.Protocol):
    """One connection. `answered(status, seconds to the first event)` says whether it asks again."""

    def __init__(self, port: int, answered: Callable[[int, float], bool], body: bytes = BODY) -> None:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode()
        self._request = head + body
        self._answered = answered
        self._transport: asyncio.Transport
        self._start = b""
        self._tail = b""
        self._sent = self._first = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._ask()

    def _ask(self) -> None:
        self._start = self._tail = b""
        self._first = 0.0
        self._sent = perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._first:
            self._start += data
            if b"data: " in self._start:
                self._first = perf_counter()
        self._tail = (self._tail + data)[-len(END) :]
        if self._tail == END or (b"\r\n\r\n" in self._start and not self._start.startswith(b"HTTP/1.1 200")):
            self._over(int(self._start[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._sent:
            self._over(0)

    def _over(self, status: int) -> None:
        seconds, self._sent = self._first - self._sent, 0.0
        if self._answered(status, seconds) and status == 200:
            self._ask()
        else:
            self._transport.close()


async def measure(port: int, streams: int, seconds: float, body: bytes) -> Run:
    """Of what begins and ends within `seconds`, after a short warm-up."""
    run, loop = Run(), asyncio.get_running_loop()
    begun, over, open_ = perf_counter() + WARM_S, asyncio.Event(), streams

    def answered(status: int, ttft: float) -> bool:
        nonlocal open_
        run.answers += status == 200
        if status != 200:
            run.failed += 1
        elif perf_counter() - begun > ttft and not over.is_set():
            run.ttft.append(ttft)
        open_ -= over.is_set() or status != 200
        return not over.is_set()

    for _ in range(streams):
        await loop.create_connection(lambda: Stream(port, answered, body), "127.0.0.1", port)
    await asyncio.sleep(max(0.0, begun - perf_counter()) + seconds)
    run.rps = len(run.ttft) / (perf_counter() - begun)
    over.set()
    async with asyncio.timeout(LIMIT_S):
        while open_ > 0:  # noqa: ASYNC110 - measured is over; the last answers are only waited for
            await asyncio.sleep(0.01)
    return run


class Held:
    """Requests that wait; `statuses` of those that were answered."""

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self.count = count
        self.statuses: list[int] = []
        self._all = asyncio.Event()

    async def ask(self) -> None:
        """All of them."""
        places = asyncio.Semaphore(AT_ONCE)

        async def one() -> None:
            async with places:
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: Stream(self._port, self._answered), "127.0.0.1", self._port)

        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as tasks:
            for _ in range(self.count):
                tasks.create_task(one())

    async def answers(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            await self._all.wait()

    def _answered(self, status: int, ttft: float) -> bool:
        self.statuses.append(status)
        if len(self.statuses) == self.count:
            self._all.set()
        return False
