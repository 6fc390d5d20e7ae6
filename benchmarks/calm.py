"""What one thread's memcpy does not show of a pair: whether others computed meanwhile, and whether both processors lie
behind one cache. A virtual machine's processors are moved by whoever lends them, several times a minute on some.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import figures

FOREIGN = 0.15
"""Pairs in which others used more than this share of a processor are dropped and counted."""
ONE_CACHE = 0.45
"""What one processor wrote another reads at least at this share of the speed of its own. Measured where the machine
moved them: 0.62-0.67 behind one cache, 0.17-0.29 otherwise."""
HANDED = 256 << 10
"""Stays in a second-level cache."""
TRIES = 8
BUSY = (1, 2, 3, 6, 7, 8)
"""Columns of /proc/stat: user, nice, system, irq, softirq, steal."""
OWN = (11, 12)
"""Columns of /proc/PID/stat behind the name: user, system."""


class Moment(NamedTuple):
    """`busy`: processor seconds of all since the machine's start; `own`: of the benchmark's processes. `one_cache`: of
    the first and the last processor."""

    memcpy: float
    at: float
    busy: float
    own: float
    one_cache: bool

    def foreign(self, later: Moment) -> float:
        """Processors that others used in between."""
        return ((later.busy - self.busy) - (later.own - self.own)) / (later.at - self.at)

    def fault(self, later: Moment) -> str:
        """Why what was measured in between tells nothing; empty: it does."""
        if not figures.steady(self.memcpy, later.memcpy):
            return "memcpy drifted"
        if self.one_cache != later.one_cache:
            return "a processor was moved"
        return "others computed" if self.foreign(later) > FOREIGN else ""


class Calm:
    """Looks before and after a pair."""

    def __init__(self, pids: Sequence[int]) -> None:
        """`pids`: the benchmark's processes."""
        self._pids = pids
        self._buffers = [mmap.mmap(-1, HANDED, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2)]
        self._written, self._read = (ctypes.addressof(ctypes.c_char.from_buffer(one)) for one in self._buffers)

    def look(self, memcpy: float) -> Moment:
        """`memcpy`: the calibrator's seconds per byte, just measured."""
        tick = os.sysconf("SC_CLK_TCK")
        busy = seconds(Path("/proc/stat").read_text().splitlines()[0], BUSY, tick)
        own = sum(seconds(stat.rpartition(")")[2], OWN, tick) for stat in self._stats())
        return Moment(memcpy, time.monotonic(), busy, own, self._handed_over() >= ONE_CACHE)

    def _stats(self) -> Iterable[str]:
        return (Path(f"/proc/{pid}/stat").read_text() for pid in self._pids)

    def _handed_over(self) -> float:
        """Reading what another processor wrote, in the speed of reading what the same one wrote."""
        allowed = os.sched_getaffinity(0)
        try:
            return self._seconds(min(allowed), min(allowed)) / self._seconds(max(allowed), min(allowed))
        finally:
            os.sched_setaffinity(0, allowed)

    def _seconds(self, writer: int, reader: int) -> float:
        best = float("inf")
        for _ in range(TRIES):
            os.sched_setaffinity(0, {writer})
            ctypes.memset(self._written, 1, HANDED)
            os.sched_setaffinity(0, {reader})
            begun = time.perf_counter()
            ctypes.memmove(self._read, self._written, HANDED)
            best = min(best, time.perf_counter() - begun)
        return best


def seconds(line: str, columns: Sequence[int], tick: int) -> float:
    """The sum of some columns of counted ticks."""
    fields = line.split()
    return sum(int(fields[column]) for column in columns) / tick
