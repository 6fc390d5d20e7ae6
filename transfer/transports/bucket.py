"""The rate limit: a token bucket. Pure; time is an argument."""

from __future__ import annotations


class Bucket:
    """Lets `rate` bytes a second through, and up to `burst` bytes at once after a rest.

    A sender asks before each frame and waits as long as it is told; so many senders share one limit in the order in
    which they asked. Not thread-safe.
    """

    def __init__(self, rate: float, burst: float, now: float = 0.0) -> None:
        """Raises ValueError where `rate` (bytes/s) or `burst` (bytes) is not above 0."""
        if rate <= 0 or burst <= 0:
            raise ValueError(f"a rate of {rate:g} B/s with bursts of {burst:g} B lets nothing through")
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = now

    def take(self, size: int, now: float) -> float:
        """Take `size` bytes; seconds to wait before they may be sent. The level may fall below zero, so that a frame
        larger than the burst passes too, and is paid for afterwards. `now` (s) never runs backwards."""
        self._refill(now)
        self._level -= size
        return max(0.0, -self._level / self._rate)

    def book(self, size: int, now: float) -> float:
        """Take `size` bytes that are sent one after the other at the rate; seconds until the first is due. Below 0, but
        never by more than the burst: what a rest has left over, so the first of them go at once."""
        self._refill(now)
        due = -self._level / self._rate
        self._level -= size
        return due

    def set_rate(self, rate: float, now: float) -> None:
        """Another rate from `now` on; what was taken stays taken. Raises ValueError where it is not above 0."""
        if rate <= 0:
            raise ValueError(f"a rate of {rate:g} B/s lets nothing through")
        self._refill(now)
        self._rate = rate

    def _refill(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._level = min(self._burst, self._level + passed * self._rate)
        self._at = max(self._at, now)
