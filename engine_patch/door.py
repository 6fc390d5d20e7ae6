"""Where requests wait while the engine's memory is away: bounded in number and in time, one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from coordinator.core.model import Load


class Shut(Exception):
    """A request does not get through. `code` is for the client's program, `retry_after` is seconds."""

    def __init__(self, code: str, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class Door:
    """Open while the engine is resident. `changed` is called with every change of the load.

    While shut, requests that are inside are frozen: they wait as well, and the load says so, for they are demand.
    """

    def __init__(self, max_queue: int, changed: Callable[[Load], None]) -> None:
        self._max_queue = max_queue
        self._changed = changed
        self._open = False
        self._broken = ""
        self._inside = 0
        self._queue: dict[asyncio.Future[None], None] = {}
        self._load = Load()

    @property
    def is_open(self) -> bool:
        return self._open

    def open(self) -> None:
        """Let in all who wait, first come, first served."""
        if self._broken:
            return
        self._open = True
        for ticket in self._queue:
            if not ticket.done():
                ticket.set_result(None)
        self._tell()

    def shut(self) -> None:
        self._open = False
        self._tell()

    def fail(self, reason: str) -> None:
        """The engine ends: whoever waits, and whoever comes, gets an answer at once."""
        self._broken = self._broken or reason
        self._open = False
        for ticket in self._queue:
            if not ticket.done():
                ticket.set_result(None)

    @asynccontextmanager
    async def passage(self, max_wait: float, gone: asyncio.Future[None] | None = None) -> AsyncIterator[bool]:
        """Wait at most `max_wait` seconds to get in; the body of the `with` is the time inside. Yields False where
        `gone` was done first: nobody waits for an answer any more.

        Raises:
            Shut: the queue is full, the wait was too long, or the engine failed.
        """
        let_in = self._open or await self._wait(max_wait, gone)
        if self._broken:
            raise Shut("engine_failed", f"this engine cannot go on: {self._broken}", 10)
        if not let_in:
            yield False
            return
        self._inside += 1
        self._tell()
        try:
            yield True
        finally:
            self._inside -= 1
            self._tell()

    async def _wait(self, max_wait: float, gone: asyncio.Future[None] | None) -> bool:
        if self._broken:
            return False
        if len(self._queue) >= self._max_queue:
            raise Shut("queue_full", f"{len(self._queue)} requests wait for this model already", 1)
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue[ticket] = None
        self._tell()
        try:
            await asyncio.wait(
                {ticket, gone} if gone else {ticket}, timeout=max_wait, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            del self._queue[ticket]
            self._tell()
        if gone is not None and gone.done():
            return False
        if not ticket.done():
            raise Shut("wait_timeout", f"the model did not get into memory within {max_wait:g} s", 5)
        return True

    def _tell(self) -> None:
        waiting = len(self._queue)
        load = Load(running=self._inside, waiting=waiting) if self._open else Load(waiting=waiting + self._inside)
        if load != self._load:
            self._load = load
            self._changed(load)
