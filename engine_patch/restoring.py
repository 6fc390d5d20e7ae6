"""One restore under way: a copy in the background, and the gates that open as it proceeds.

A gate opens when all bytes of its stage, and of those before, are there and have passed the canary. Threads may wait at
different gates at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

from coordinator.errors import VnpuError
from engine_patch.stages import Entry

LIMIT_S = 50.0
"""Longest wait for the bytes of a stage: under the operation's own limit."""


class MemoryFault(VnpuError):
    """The engine's memory is not what it must be."""


class Cancelled(Exception):
    """The restore was taken back."""


class Job(Protocol):
    """The part of `native._native.CopyJob` that is used."""

    def wait(self, entries: int | None = None, timeout_s: float = 3600.0) -> bool: ...

    def cancel(self) -> None: ...

    @property
    def cancelled(self) -> bool: ...

    @property
    def bytes_total(self) -> int: ...

    @property
    def seconds(self) -> float: ...


class Restoring:
    """See the module. Thread-safe."""

    def __init__(
        self,
        start: Callable[[Sequence[Entry]], Job],
        stages: Sequence[Sequence[Entry]],
        check: Callable[[int], None],
    ) -> None:
        """`start` begins the copy of all stages' entries, which it takes in their order; `check(stage)` raises
        `MemoryFault` where what came back is not what was sealed."""
        self._ends = tuple(accumulate(len(entries) for entries in stages))
        self._check = check
        self._lock = threading.Lock()
        self._open = 0
        self._fault: MemoryFault | None = None
        self._cancelled = False
        self._job = start([entry for entries in stages for entry in entries])

    @property
    def bytes(self) -> int:
        return self._job.bytes_total

    @property
    def seconds(self) -> float:
        """How long the copy took, or has been going on."""
        return self._job.seconds

    @property
    def done(self) -> bool:
        """Every gate is open."""
        return self._open == len(self._ends)

    def await_stage(self, stage: int) -> None:
        """Until this gate is open.

        Raises:
            MemoryFault: it never opens: the copy did not end, or what came back is wrong.
            Cancelled: the restore was taken back.
        """
        if self._open > stage:
            return
        if not self._job.wait(self._ends[stage], LIMIT_S):
            if self._job.cancelled:
                raise Cancelled
            raise self._failed(MemoryFault(f"the copy did not end within {LIMIT_S:g} s", remedy="report this"))
        with self._lock:
            while self._open <= stage:
                self._open_next()

    def finish(self) -> None:
        """Until every gate is open. Raises as `await_stage`."""
        self.await_stage(len(self._ends) - 1)

    def cancel(self) -> None:
        """Returns when nothing is copied or looked at any more. Idempotent."""
        self._job.cancel()
        with self._lock:
            self._cancelled = True

    def _open_next(self) -> None:
        if self._cancelled:
            raise Cancelled
        if self._fault is not None:
            raise self._fault
        try:
            self._check(self._open)
        except MemoryFault as fault:
            raise self._failed(fault) from None
        self._open += 1

    def _failed(self, fault: MemoryFault) -> MemoryFault:
        self._fault = self._fault or fault
        return self._fault
