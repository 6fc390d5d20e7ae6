"""Connections to engines: one request at a time on each, kept for a while after it was answered whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from multidict import CIMultiDict

from coordinator.errors import VnpuError
from coordinator.http1.head import MOST_BYTES, Fields
from coordinator.http1.turns import Turns

MOST_AHEAD: Final = 256 << 10
"""Bytes of an answer that are taken from the network before somebody reads them."""
TOGETHER: Final = 64 << 10
"""A body of at most that many bytes goes out with its head at once."""
KEEP_S: Final = 3.0
"""Idle connections end before uvicorn (5 s) ends them: a request must not meet a closing connection."""
SWEEP_S: Final = 1.0


class BrokenOff(VnpuError):
    """The engine's connection ended, was silent for too long, or said what is no HTTP, before its answer was whole."""


class Upstream(asyncio.Protocol):
    """One connection. `status` and `headers` are there after `ask`. What comes wakes its reader in its turn of `turns`,
    or goes on without one (`hand_on`); that it broke is told at once. `waits_since`: a reader is there, and nothing has
    come since."""

    def __init__(self, turns: Turns) -> None:
        self._loop = asyncio.get_running_loop()
        self._turns = turns
        self._fields = Fields()
        self.on_header = self._fields.add
        self._parts: list[bytes] = []
        self.on_body = self._parts.append
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._ahead = self._head_bytes = 0
        self._held = self._queued = False
        self._fault = ""
        self._waiter: asyncio.Future[None] | None = None
        self._take: Callable[[bytes], bool] | None = None
        self._headed = self._to_the_end = False
        self._whole = True
        self.waits_since: float | None = None
        self.idle_since = 0.0
        self.status = 0
        self.headers: CIMultiDict[str] = CIMultiDict()

    async def ask(self, head: bytes, body: bytes) -> None:
        """Until the head of its answer is there. Raises BrokenOff."""
        self._whole = self._headed = self._to_the_end = False
        self._head_bytes = 0
        if len(body) <= TOGETHER:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        while not self._headed:
            await self._wait()

    async def read(self) -> bytes:
        """All that has come of the body, at least a byte; empty at its end. Raises BrokenOff."""
        while not self._parts and not self._whole:
            await self._wait()
        return self.here()

    def here(self) -> bytes:
        """What has come of the body and was not read: all that is left where it is whole."""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._ahead = 0
        if self._held and not self._fault:
            self._held = False
            self._transport.resume_reading()
        return data

    async def hand_on(self, take: Callable[[bytes], bool]) -> None:
        """Has `take` called in its turn with what comes, and wakes nobody, until `take` says False, or more is `here`
        than it may have: the end, with the last words. Raises BrokenOff, and what `take` raises."""
        self._take = take
        try:
            while self._take is not None and not self.ready:
                await self._wait()
        finally:
            self._take = None

    @property
    def ready(self) -> bool:
        """`read` would not wait."""
        return bool(self._parts) or self._whole

    @property
    def over(self) -> bool:
        """All of the answer was read."""
        return self._whole and not self._parts

    @property
    def reusable(self) -> bool:
        """Its answer was read whole, and it is still open."""
        return self.over and not self._fault

    def fail(self, fault: str) -> None:
        """Whoever waits on it is told, and it closes."""
        self._fault = self._fault or fault
        self._wake()
        self._transport.abort()

    async def _wait(self) -> None:
        if self._fault:
            raise BrokenOff(self._fault)
        self._waiter = self._loop.create_future()
        self.waits_since = self._loop.time()
        try:
            await self._waiter
        finally:
            self.waits_since = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the network says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            return
        if self._whole:  # nobody asked
            self.fail("it spoke unasked")
            return
        self._ahead += len(data)
        self.waits_since = None
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self.fail(f"it said what is no HTTP: {error}")
            return
        self._head_bytes += 0 if self._headed else len(data)
        if self._head_bytes > 2 * MOST_BYTES:
            self.fail("the head of its answer has no end")
        elif self._ahead > MOST_AHEAD and not self._held:
            self._held = True
            self._transport.pause_reading()
        if not self._queued:
            self._queued = True
            self._turns.queue(self._go_on)

    def _go_on(self) -> None:
        self._queued = False
        if self._take is None or self._whole or not self._parts or not self._handed(self._take):
            self._wake()

    def _handed(self, take: Callable[[bytes], bool]) -> bool:
        """Whether its reader still waits: for the next words."""
        try:
            if take(self.here()):
                self.waits_since = self._loop.time()
                return True
        except Exception as error:  # noqa: BLE001 - its reader's to handle
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(error)
        self._take = None
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._parser = None
        if self._to_the_end and exc is None and not self._fault:
            self._whole = True
        self._fault = self._fault or "its connection ended"
        self._wake()

    # What the parser says.

    def on_headers_complete(self) -> None:
        headers = self._fields.take()
        if self._parser is None or self._whole:
            raise BrokenOff("it answered twice")
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and the like: the answer is still to come
            return
        self.status, self.headers = status, headers
        self._headed = True
        framed = "Content-Length" in headers or "Transfer-Encoding" in headers or status in (204, 304)
        self._to_the_end = not framed

    def on_message_complete(self) -> None:
        if self._headed and self._parser is not None:
            self._whole = True
            self._to_the_end = False
            if not self._parser.should_keep_alive():
                self._fault = "its connection ends"


class Pool:
    """Of connections, by address; make it while a loop runs. An engine that is asked may be silent for `silence_s`."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._loop = asyncio.get_running_loop()
        self._turns = Turns(self._loop.call_soon)
        self._idle: dict[tuple[str, int], list[Upstream]] = {}
        self._busy: set[Upstream] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    async def take(self, address: tuple[str, int], timeout_s: float) -> Upstream:
        """An open connection, to be given back. Raises OSError or TimeoutError where there is none."""
        idle = self._idle.get(address, [])
        while idle:
            upstream = idle.pop()
            if upstream.reusable and self._loop.time() - upstream.idle_since < KEEP_S:
                self._busy.add(upstream)
                return upstream
            upstream.fail("it was idle")
        async with asyncio.timeout(timeout_s):
            _, upstream = await self._loop.create_connection(lambda: Upstream(self._turns), *address)
        self._busy.add(upstream)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(min(SWEEP_S, self._silence_s / 4), self._sweep)
        return upstream

    def give(self, address: tuple[str, int], upstream: Upstream) -> None:
        """It is kept where its answer was read whole; else it ends, and so does the engine's work."""
        self._busy.discard(upstream)
        if upstream.reusable:
            upstream.idle_since = self._loop.time()
            self._idle.setdefault(address, []).append(upstream)
        else:
            upstream.fail("nobody reads it")

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for upstream in (*self._busy, *(each for idle in self._idle.values() for each in idle)):
            upstream.fail("the gateway ends")
        self._idle.clear()
        await asyncio.sleep(0)

    def _sweep(self) -> None:
        """Ends what is idle or silent for too long."""
        now = self._loop.time()
        for upstream in tuple(self._busy):
            if upstream.waits_since is not None and now - upstream.waits_since > self._silence_s:
                upstream.fail(f"it was silent for {self._silence_s:g} s")
        for address, idle in tuple(self._idle.items()):
            kept = [each for each in idle if each.reusable and now - each.idle_since < KEEP_S]
            for each in {*idle} - {*kept}:
                each.fail("it was idle")
            if kept:
                self._idle[address] = kept
            else:
                del self._idle[address]
        busy = bool(self._busy or self._idle)
        self._sweeper = self._loop.call_later(min(SWEEP_S, self._silence_s / 4), self._sweep) if busy else None
