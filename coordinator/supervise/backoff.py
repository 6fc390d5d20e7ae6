"""How long to wait before a crashed process is started again. Pure."""

from __future__ import annotations

import msgspec


class Backoff(msgspec.Struct):
    """Doubles from `first_s` to `longest_s`; a process that ran for `calm_s` is forgiven.

    `failures` counts the crashes since then."""

    first_s: float = 1.0
    longest_s: float = 60.0
    calm_s: float = 60.0
    failures: int = 0

    def crashed(self, ran_s: float) -> float:
        """A process ended on its own after `ran_s` seconds: the seconds to wait before the next start."""
        if ran_s >= self.calm_s:
            self.failures = 0
        self.failures += 1
        doublings = min(self.failures - 1, 32)
        return min(self.first_s * float(1 << doublings), self.longest_s)
