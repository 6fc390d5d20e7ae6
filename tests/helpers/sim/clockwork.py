"""Virtual time: callbacks in order of time, and processes that sleep, park and can be frozen or killed."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator

Script = Generator[float | None, None, None]
"""Yields seconds to sleep, or None to park until woken."""


class Clockwork:
    """The only clock. Equal times run in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._seq = 0

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._seq += 1
        heapq.heappush(self._heap, (when, self._seq, action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.at(self.now + seconds, action)

    def run(self, until: float, check: Callable[[], None]) -> None:
        """Everything up to `until`, with `check` after every action."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self._heap)
            action()
            check()
        self.now = until


class Process:
    """Runs a script. Frozen, it does nothing until thawed; dead, it never does anything again."""

    def __init__(self, clockwork: Clockwork, script: Script) -> None:
        self._clockwork = clockwork
        self._script = script
        self._parked = False
        self._woken = False
        self._missed = False
        self.frozen = False
        self.dead = False
        clockwork.after(0.0, self._step)

    def wake(self) -> None:
        if self._parked:
            self._parked = False
            self._clockwork.after(0.0, self._step)
        else:
            self._woken = True

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        if self._missed:
            self._missed = False
            self._clockwork.after(0.0, self._step)

    def kill(self) -> None:
        self.dead = True

    def _step(self) -> None:
        if self.dead:
            return
        if self.frozen:
            self._missed = True
            return
        try:
            sleep = next(self._script)
        except StopIteration:
            self.dead = True
            return
        if sleep is not None:
            self._clockwork.after(sleep, self._step)
        elif self._woken:
            self._clockwork.after(0.0, self._step)
        else:
            self._parked = True
        self._woken = False
