"""How long each step of an operation took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from coordinator.core.model import Step


class Stopwatch:
    """Names and times the steps of one operation."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.steps: list[Step] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = self._clock()
        try:
            yield
        finally:
            self.steps.append(Step(name, self._clock() - start))
