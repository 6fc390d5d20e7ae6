"""Virtual time: actions in order of time; equal times in the order in which they were asked for."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import inf

Action = Callable[[], None]


class Clock:
    """`now` in seconds since the beginning."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Action]] = []
        self._asked = 0

    def at(self, when: float, action: Action) -> None:
        self._asked += 1
        heapq.heappush(self._heap, (max(when, self.now), self._asked, action))

    def after(self, seconds: float, action: Action) -> None:
        self.at(self.now + seconds, action)

    def next(self) -> float:
        """When the next action is due; infinity: there is none."""
        return self._heap[0][0] if self._heap else inf

    def step(self) -> None:
        """The next action, at its time."""
        self.now, _, action = heapq.heappop(self._heap)
        action()
