"""Calls after a fixed time, to some microseconds; or all that come within a step together, at its end.

libuv's timers, and so uvloop's, count whole milliseconds (https://docs.libuv.org/en/v1.x/timer.html): an engine that
waits by them answers everybody who asked within one millisecond at once, and a herd that was none meets whatever is
measured. A timerfd (timerfd_create(2)) counts nanoseconds.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import time
from collections import deque
from collections.abc import Callable

_CLOCK_MONOTONIC, _NONBLOCK, _CLOEXEC, _ABSTIME = 1, 0o4000, 0o2000000, 1
_SPEC = struct.Struct("=qqqq")
"""struct itimerspec: interval, then the time that is waited for, each in seconds and nanoseconds."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_S = 1_000_000_000


def due_at(now: int, wait: int, step: int) -> int:
    """Nanoseconds: `wait` after `now`, or at the end of the step in which that is (`step` 0: there are none)."""
    due = now + wait
    return due + -due % step if step else due


class Later:
    """Of one event loop, for as long as the process lives. `step` other than 0: what would be due within one such step
    of the clock is called at the step's end, all of it in one go. Raises OSError where the kernel gives no timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, step: float = 0.0) -> None:
        self._ns = int(seconds * _S)
        self._step_ns = int(step * _S)
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._fd = int(_LIBC.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK | _CLOEXEC))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        loop.add_reader(self._fd, self._due)

    def call(self, back: Callable[[], None]) -> None:
        """In so many seconds from now, or at the end of the step in which that is."""
        self._waiting.append((due_at(time.monotonic_ns(), self._ns, self._step_ns), back))
        if len(self._waiting) == 1:
            self._arm()

    def _due(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        now = time.monotonic_ns()
        while self._waiting and self._waiting[0][0] <= now:
            self._waiting.popleft()[1]()
        if self._waiting:
            self._arm()

    def _arm(self) -> None:
        due = self._waiting[0][0]
        if _LIBC.timerfd_settime(self._fd, _ABSTIME, _SPEC.pack(0, 0, due // _S, due % _S), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
