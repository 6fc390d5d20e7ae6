"""The yardstick: one thread's plain memcpy between two warm buffers."""

from __future__ import annotations

import ctypes
import mmap
import time

GRAIN = 512 << 20


def seconds_per_byte(sample: int = GRAIN, rounds: int = 5) -> float:
    """Best of `rounds` copies of `sample` bytes by the C library's memcpy, divided by `sample`; both buffers are
    touched before, so that no page fault is counted."""
    source, target = (_warm(sample) for _ in range(2))
    best = float("inf")
    for _ in range(rounds):
        begun = time.perf_counter()
        ctypes.memmove(_address(target), _address(source), sample)
        best = min(best, time.perf_counter() - begun)
    return best / sample


def _warm(size: int) -> mmap.mmap:
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ctypes.memset(_address(buffer), 1, size)
    return buffer


def _address(buffer: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
