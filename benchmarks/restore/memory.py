"""The memory that `restore` moves: a host master, pooled device pages, and fresh pages to compare with."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from engine_patch.host_memory import Mapping
from native import _native

CHUNK = 16 << 20
"""As the daemon has it on devices of 512 MiB and more, bytes."""
THREADS = 2
"""As `engine_patch.copier` has it."""
NO_HUGE = 15
"""MADV_NOHUGEPAGE, madvise(2)."""


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


class Pool:
    """`size` bytes of populated device pages of the host driver, mapped and unmapped as an engine does it."""

    def __init__(self, size: int) -> None:
        self._driver = _native.open_driver("host")
        self.size = size
        self.base = self._driver.reserve(size)
        handles = [self._driver.create(CHUNK) for _ in range(size // CHUNK)]
        self._pairs = [(self.base + i * CHUNK, handle) for i, handle in enumerate(handles)]

    @property
    def huge(self) -> bool:
        return self._driver.stats().huge_bytes >= self.size

    def map(self, size: int) -> None:
        self._driver.map_many(self._pairs[: size // CHUNK])

    def unmap(self, size: int) -> None:
        self._driver.unmap_many([address for address, _ in self._pairs[: size // CHUNK]])

    def wipe(self, size: int) -> None:
        """As the daemon does to chunks that change hands; they are not mapped."""
        self._driver.wipe([handle for _, handle in self._pairs[: size // CHUNK]])

    @contextmanager
    def mapped(self, size: int) -> Iterator[None]:
        self.map(size)
        try:
            yield
        finally:
            self.unmap(size)

    def close(self) -> None:
        for _, handle in self._pairs:
            self._driver.destroy(handle)
        self._driver.release(self.base)


def stream(to: int, source: Mapping, size: int, pieces: int = 1) -> None:
    """What a restore copies with, in `pieces` equal entries."""
    each = size // pieces
    entries = [(to + i * each, source.address + i * each, each) for i in range(pieces)]
    if not _native.CopyJob(entries, THREADS).wait():
        raise RuntimeError("the copy did not end")


def fresh(source: Mapping, size: int, make: Callable[[int], mmap.mmap]) -> float:
    """Seconds to restore into pages that must be made first: what a wake costs that gets new memory."""
    with make(size + (2 << 20)) as pages:
        first = ctypes.c_char.from_buffer(pages)
        aligned = -(-ctypes.addressof(first) // (2 << 20)) * (2 << 20)
        taken = seconds(lambda: stream(aligned, source, size))
        del first
    return taken


def shared_small(size: int) -> mmap.mmap:
    """Pages of 4 KiB of a memfd, which nobody has touched: as a device's are where huge ones cannot be had."""
    file = os.memfd_create("fresh")
    try:
        os.ftruncate(file, size)
        return mmap.mmap(file, size)
    finally:
        os.close(file)


def private_small(size: int) -> mmap.mmap:
    """Pages of 4 KiB that no other process can be given; they are cheaper to make."""
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(NO_HUGE)
    return pages


def private_huge(size: int) -> mmap.mmap:
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def deviation(sizes: Sequence[int], times: Sequence[float]) -> float:
    """Worst ratio, either way, of a time to the straight line through all (least squares of relative errors)."""
    weights = [1 / t**2 for t in times]
    total = sum(weights)
    x = sum(w * s for w, s in zip(weights, sizes, strict=True)) / total
    y = sum(w * t for w, t in zip(weights, times, strict=True)) / total
    spread = sum(w * (s - x) ** 2 for w, s in zip(weights, sizes, strict=True))
    slope = sum(w * (s - x) * (t - y) for w, s, t in zip(weights, sizes, times, strict=True)) / spread
    line = [y + slope * (s - x) for s in sizes]
    return max(max(t / on, on / t) for t, on in zip(times, line, strict=True))
