"""Streaming copies on all processors the engine may use.

vLLM binds a worker's threads to a few cores, and threads inherit that; so copies run from a thread of their own whose
affinity is that of the whole engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from native import _native
from native.digest import content_digest

T = TypeVar("T")

MOST_THREADS = 2
"""Two saturate the memory bus of the machines this was measured on (facts: memory and transfer)."""
FEW_BYTES = 1 << 20
"""Copied where the caller is: in the time that another thread takes to begin, and the caller to hear of its end."""


class Copier:
    """Blocks its caller until the work is done, except `start`; the GIL is free meanwhile."""

    def __init__(self, cpus: Sequence[int]) -> None:
        """`cpus`: processors the engine may use; none: all."""
        wanted = set(cpus) or set(range(os.cpu_count() or 1))
        self._threads = min(MOST_THREADS, len(wanted))
        self._beside = max(1, min(MOST_THREADS, len(wanted) // 2))
        self._pool = ThreadPoolExecutor(
            1, thread_name_prefix="vnpu-copy", initializer=os.sched_setaffinity, initargs=(0, wanted)
        )

    def copy(self, entries: Sequence[tuple[int, int, int]]) -> None:
        """Every `(destination, source, length)`. Raises ValueError where they overlap."""
        if sum(length for _, _, length in entries) <= FEW_BYTES:
            _native.copy(entries, 1)
        else:
            self._do(lambda: _native.copy(entries, self._threads))

    def start(self, entries: Sequence[tuple[int, int, int]], *, beside: bool) -> _native.CopyJob:
        """The same in the background, in the order of the entries. `beside` a forward pass: on half of the processors
        at most, so that it does not take those that compute. (One thread copies 1 GB in 61 ms on the machine where a
        forward pass over it takes 113 ms: it stays ahead.) Raises as `copy`."""
        return self._do(lambda: _native.CopyJob(entries, self._beside if beside else self._threads))

    def digest(self, ranges: Sequence[tuple[int, int]]) -> str:
        """Content digest of these ranges, see `native.digest`."""
        return self._do(lambda: content_digest(ranges, self._threads))

    def close(self) -> None:
        self._pool.shutdown()

    def _do(self, work: Callable[[], T]) -> T:
        return self._pool.submit(work).result()
