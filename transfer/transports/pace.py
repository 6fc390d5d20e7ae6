"""The rate limit of one engine's sends, shared by the threads of all its clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from transfer.transports.bucket import Bucket

BURST_S = 0.02
"""Seconds' worth of bytes that may go at once: short against a decoding step."""
LONGEST_S = 0.5
"""A wait is cut in pieces this long, so that a limit that was lifted meanwhile frees those who wait."""


class SharedPace:
    """`limit()` gives bytes a second, or 0 for no limit, and is asked again for each frame. Thread-safe."""

    def __init__(self, limit: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._bucket: Bucket | None = None
        self._rate = 0.0

    def wait(self, size: int) -> None:
        """Until `size` bytes may be sent, or `end` was called."""
        left = self._take(size)
        while left > 0 and not self._ended.wait(min(left, LONGEST_S)):
            left = left - LONGEST_S if self._limit() else 0

    def end(self) -> None:
        """Nobody waits any more."""
        self._ended.set()

    def _take(self, size: int) -> float:
        with self._lock:
            rate, now = self._limit(), self._clock()
            if not rate:
                self._bucket = None
                return 0.0
            if self._bucket is None or rate != self._rate:
                self._bucket, self._rate = Bucket(rate, rate * BURST_S, now), rate
            return self._bucket.take(size, now)
