"""What goes through the coordinator's loop, live, as server-sent events.

A subscriber that does not keep up is told so and let go: nothing here grows for the sake of a slow reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from coordinator.core.commands import Command
from coordinator.core.events import Event

BACKLOG = 1024
_encode = msgspec.json.Encoder().encode


class Feed:
    """Encodes only while somebody listens."""

    def __init__(self, backlog: int = BACKLOG) -> None:
        self._backlog = backlog
        self._subscribers: set[Subscription] = set()

    def publish(self, kind: str, item: Event | Command) -> None:
        """`kind` is `event` or `command`; the item's own tag says which."""
        if not self._subscribers:
            return
        frame = b"event: " + kind.encode() + b"\ndata: " + _encode(item) + b"\n\n"
        for subscriber in tuple(self._subscribers):
            subscriber.offer(frame)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        subscription = Subscription(self._backlog)
        self._subscribers.add(subscription)
        try:
            yield subscription
        finally:
            self._subscribers.discard(subscription)

    @property
    def subscribers(self) -> int:
        return len(self._subscribers)

    def end(self) -> None:
        """No more is coming: whoever listens is let go."""
        for subscriber in tuple(self._subscribers):
            subscriber.close()


class Subscription:
    """One listener's backlog."""

    def __init__(self, backlog: int) -> None:
        self._frames: asyncio.Queue[bytes] = asyncio.Queue(backlog)
        self._ended = asyncio.Event()
        self.lagged = False

    def offer(self, frame: bytes) -> None:
        try:
            self._frames.put_nowait(frame)
        except asyncio.QueueFull:
            self.lagged = True
            self._ended.set()

    def close(self) -> None:
        self._ended.set()

    async def next(self, timeout_s: float) -> bytes | None:
        """The next frame, empty after `timeout_s` without one; None: it is over."""
        if self._ended.is_set():
            return None
        if not self._frames.empty():
            return self._frames.get_nowait()
        frame = asyncio.ensure_future(self._frames.get())
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait((frame, ended), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return frame.result() if frame.done() else (None if ended.done() else b"")
        finally:
            frame.cancel()
            ended.cancel()
