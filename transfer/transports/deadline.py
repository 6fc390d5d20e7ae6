"""A point of monotonic time until which something must be done; every read and write has one."""

from __future__ import annotations

import time
from collections.abc import Callable

from transfer.errors import PeerLost


class Deadline:
    """`Deadline.after(5)` ends in five seconds."""

    def __init__(self, at: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.at = at
        self._clock = clock

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        return cls(clock() + seconds, clock)

    def left(self) -> float:
        """Seconds until then. Raises PeerLost where it has passed."""
        left = self.at - self._clock()
        if left <= 0:
            raise PeerLost("the peer did not answer in time", remedy="see whether it is alive and the network is well")
        return left
