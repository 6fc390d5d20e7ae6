"""Is the engine alive? A ping through EngineCore says so; where it does not come back, the processes' own signs do.

EngineCore answers between steps only, and a step on a CPU may take longer than any sensible ping: an engine counts as
stuck when a ping is missed *and* one of its processes is stopped, or none used the processor meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

PING_S = 3.0
EVERY_S = 2.0


class Sign(msgspec.Struct, frozen=True):
    """A process as /proc/<pid>/stat has it (proc(5)): state letter, and processor time in clock ticks."""

    state: str
    ticks: int


def signs(pids: Iterable[int]) -> dict[int, Sign]:
    """Processes that are gone are left out."""
    found: dict[int, Sign] = {}
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = text.rpartition(")")[2].split()
        found[pid] = Sign(fields[0], int(fields[11]) + int(fields[12]))
    return found


def stopped(now: dict[int, Sign]) -> bool:
    """Whether a process is stopped (a signal, a debugger) or a zombie."""
    return any(sign.state in "TtZX" for sign in now.values())


def stuck(before: dict[int, Sign], now: dict[int, Sign]) -> bool:
    """After a missed ping: nothing moves any more."""
    moved = any(pid in before and sign.ticks > before[pid].ticks for pid, sign in now.items())
    return stopped(now) or not moved


def seconds_since_start() -> float:
    """How long this process has been running."""
    import os
    import time

    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
