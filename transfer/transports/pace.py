"""The rate limit of one engine's sends, shared by the threads of all its clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

from transfer.transports.bucket import Bucket

BURST_S = 0.02
"""Seconds' worth of bytes that may go at once: short against a decoding step."""
LONGEST_S = 0.5
"""A wait is cut in pieces this long, so that a limit that was lifted meanwhile frees those who wait."""
BOOKED_S = 0.05
"""Seconds' worth of bytes that are booked at once: others wait so long for them, and a limit that changes finds no more
than that, and its first byte so far off, beyond recall."""


class Slot(NamedTuple):
    """When so many of some pieces may go: the first byte `delay_s` seconds from now (below 0: it was due before; never
    more than `BOOKED_S`), those behind it at `rate` bytes a second. A rate of 0: all at once."""

    pieces: int
    delay_s: float = 0.0
    rate: float = 0.0


class Pace(Protocol):
    """A limit that many channels share."""

    @property
    def free(self) -> bool:
        """There is no limit just now."""

    def wait(self, size: int) -> None:
        """Until `size` bytes may be sent."""

    def book(self, sizes: Sequence[int]) -> Slot:
        """When pieces of these sizes may go, one after the other: one of them, or as many as a slot has room for.
        Returns when that is near, so nobody calls it while holding what others need."""


class SharedPace:
    """`limit()` gives bytes a second, or 0 for no limit, and is asked again for each frame. Thread-safe."""

    def __init__(self, limit: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._bucket: Bucket | None = None
        self._rate = 0.0

    @property
    def free(self) -> bool:
        """As `Pace.free`."""
        return not self._limit()

    def wait(self, size: int) -> None:
        """Until `size` bytes may be sent, or `end` was called."""
        with self._lock:
            bucket, _ = self._now()
            left = bucket.take(size, self._clock()) if bucket else 0.0
        while left > 0 and not self._ended.wait(min(left, LONGEST_S)):
            left = left - LONGEST_S if self._limit() else 0

    def book(self, sizes: Sequence[int]) -> Slot:
        """As `Pace.book`: nothing else of this limit goes meanwhile. Where the limit changes, it is booked anew."""
        while True:
            with self._lock:
                bucket, rate = self._now()
                if bucket is None or self._ended.is_set():
                    return Slot(len(sizes))
                count = fitting(sizes, rate * BOOKED_S)
                due = self._clock() + bucket.book(sum(sizes[:count]), self._clock())
            if self._await(due - BOOKED_S, rate):
                return Slot(count, due - self._clock(), rate)

    def _await(self, until: float, rate: float) -> bool:
        """False: not `until` then, for the limit is another, or `end` was called."""
        while (left := until - self._clock()) > 0:
            if self._ended.wait(min(left, BOOKED_S)) or self._limit() != rate:
                return False
        return True

    def end(self) -> None:
        """Nobody waits any more."""
        self._ended.set()

    def _now(self) -> tuple[Bucket | None, float]:
        """What the limit is by now; None: there is none."""
        rate = self._limit()
        if not rate:
            self._bucket = None
        elif self._bucket is None or rate != self._rate:
            self._bucket, self._rate = Bucket(rate, rate * BURST_S, self._clock()), rate
        return self._bucket, rate


def fitting(sizes: Sequence[int], most: float) -> int:
    """How many of the pieces make up `most` bytes or less; one where there is one, however long it is."""
    return max(min(1, len(sizes)), sum(total <= most for total in accumulate(sizes)))
