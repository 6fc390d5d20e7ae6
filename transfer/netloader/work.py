"""The blocks that a client still lacks, shared by the threads that fetch them.

Threads claim runs of blocks in order, hand in each block that has landed, and give back what they could not get: so a
fast source takes more than a slow one, and a broken connection costs no block twice.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple


class Run(NamedTuple):
    """Blocks `first` to `first + length - 1`."""

    first: int
    length: int


class Work:
    """Thread-safe. Every block is unclaimed, claimed by one, or landed."""

    def __init__(self, blocks: int, run: int) -> None:
        """`run`: blocks in one claim."""
        self._changed = threading.Condition()
        self.blocks = blocks
        self._open = deque(Run(at, min(run, blocks - at)) for at in range(0, blocks, run))
        self._landed = bytearray(blocks)
        self._missing = blocks
        self._ended = False

    @property
    def landed(self) -> int:
        """Blocks that are there."""
        with self._changed:
            return len(self._landed) - self._missing

    @property
    def over(self) -> bool:
        """Nobody needs to fetch any more: all are there, or it was ended."""
        with self._changed:
            return not self._missing or self._ended

    def claim(self, wait_s: float = 0.0, runs: int = 1) -> Run | None:
        """The next run in order, or up to so many as one where they are neighbours. None: nothing is unclaimed now,
        after one wait of at most `wait_s` for what others give back."""
        with self._changed:
            if not self._open and self._missing and not self._ended and wait_s:
                self._changed.wait(wait_s)
            if not self._open or self._ended:
                return None
            first, length = self._open.popleft()
            for _ in range(runs - 1):
                if not self._open or self._open[0].first != first + length:
                    break
                length += self._open.popleft().length
            return Run(first, length)

    def give_back(self, run: Run) -> None:
        """What of the run has not landed goes to others, first of all."""
        with self._changed:
            for number in reversed(range(run.first, run.first + run.length)):
                if not self._landed[number]:
                    self._open.appendleft(Run(number, 1))
            self._changed.notify_all()

    def land(self, *numbers: int) -> None:
        """The blocks are there, checked. Idempotent."""
        with self._changed:
            for number in numbers:
                self._missing -= not self._landed[number]
                self._landed[number] = 1
            self._changed.notify_all()

    def keep(self, numbers: Iterable[int]) -> None:
        """Before the first claim: these are there without anybody's fetching them."""
        self.land(*numbers)
        with self._changed:
            left = [run for each in self._open for run in self._missing_of(each)]
            self._open = deque(left)

    def _missing_of(self, run: Run) -> Iterator[Run]:
        numbers = range(run.first, run.first + run.length)
        for missing, some in groupby(numbers, lambda number: not self._landed[number]):
            if missing:
                first, *others = some
                yield Run(first, 1 + len(others))

    def has(self, number: int) -> bool:
        return bool(self._landed[number])

    def has_all(self, run: Run) -> bool:
        """Whether all of the run has landed."""
        return 0 not in self._landed[run.first : run.first + run.length]

    def await_block(self, number: int, timeout_s: float) -> bool:
        """Whether the block is there, at the latest after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._landed[number] or self._ended, timeout_s)
            return bool(self._landed[number])

    def await_done(self, timeout_s: float) -> bool:
        """Whether all blocks are there, at the latest after so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._missing or self._ended, timeout_s) and not self._missing

    def wake(self) -> None:
        """Whoever waits for something to claim looks up."""
        with self._changed:
            self._changed.notify_all()

    def forget(self) -> None:
        """Nothing is there any more, for whoever asks: the memory is about to hold something else."""
        with self._changed:
            self._landed = bytearray(self.blocks)
            self._missing = self.blocks
            self._ended = True
            self._changed.notify_all()

    def end(self) -> None:
        """No more claims; whoever waits returns."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Whole:
    """The same to a server, where everything is there."""

    def await_block(self, number: int, timeout_s: float) -> bool:
        return True
