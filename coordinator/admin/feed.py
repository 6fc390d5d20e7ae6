"""What goes through the coordinator's loop, live, as server-sent events.

A subscriber that does not keep up is told so and let go: nothing here grows for the sake of a slow reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import msgspec

BACKLOG = 1024
KINDS = ("event", "command", "decision", "switch", "sample")
"""What may be published. `event` and `command` are all that goes in and out; the others are for people."""
_encode = msgspec.json.Encoder().encode


class Feed:
    """Encodes only while somebody listens. `turn` moves with whatever is published, or could have been."""

    def __init__(self, backlog: int = BACKLOG) -> None:
        self._backlog = backlog
        self._subscribers: set[Subscription] = set()
        self.turn = 0

    def publish(self, kind: str, item: msgspec.Struct) -> None:
        """`kind` is one of KINDS; the item's own tag says which event or command."""
        self.turn += 1
        heard_by = [each for each in self._subscribers if kind in each.kinds]
        if not heard_by:
            return
        frame = b"event: " + kind.encode() + b"\ndata: " + _encode(item) + b"\n\n"
        for subscriber in heard_by:
            subscriber.offer(frame)

    def touch(self) -> None:
        """Time has passed: what is shown may be other than it was, though nothing is to be told."""
        self.turn += 1

    @contextmanager
    def subscribe(self, kinds: Collection[str] = KINDS) -> Iterator[Subscription]:
        subscription = Subscription(self._backlog, frozenset(kinds))
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
    """One listener's backlog of the `kinds` that it asked for."""

    def __init__(self, backlog: int, kinds: frozenset[str]) -> None:
        self._frames: asyncio.Queue[bytes] = asyncio.Queue(backlog)
        self._ended = asyncio.Event()
        self.kinds = kinds
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
