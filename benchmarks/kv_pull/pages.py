"""Memory as engines of vNPU have their KV in: device pages of the host driver, huge where the machine has them."""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

from native import _native
from transfer.kv.reader import Span

CHUNK = 16 << 20
"""As the daemon has it on devices of 512 MiB and more, bytes."""
NOISE = 1 << 20

Chunks = list[tuple[int, int]]
"""Descriptors and sizes."""


@contextmanager
def warm(size: int) -> Iterator[Span]:
    """Pages that were touched before; `size` is rounded up to chunks."""
    with _mapped(_native.open_driver("host"), size) as (base, _):
        ctypes.memset(base, 1, size)
        yield Span(base, size)


@contextmanager
def shared(size: int) -> Iterator[Chunks]:
    """Chunks of random bytes, for other processes to map."""
    driver = _native.open_driver("host")
    with _mapped(driver, size) as (base, handles):
        noise = random.Random(3).randbytes(NOISE)
        for number, at in enumerate(range(0, len(handles) * CHUNK, NOISE)):
            first = number % 97
            ctypes.memmove(base + at, noise[first:] + noise[:first], NOISE)
        descriptors = [driver.export_handle(handle) for handle in handles]
        try:
            yield [(descriptor, CHUNK) for descriptor in descriptors]
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def huge() -> bool:
    """Whether this machine gives huge pages."""
    driver = _native.open_driver("host")
    handle = driver.create(CHUNK)
    found = driver.stats().huge_bytes == CHUNK
    driver.destroy(handle)
    return found


@contextmanager
def _mapped(driver: _native.Driver, size: int) -> Iterator[tuple[int, list[int]]]:
    """Address and handles of chunks that hold `size` bytes."""
    handles = [driver.create(CHUNK) for _ in range(-(-size // CHUNK))]
    base = driver.reserve(len(handles) * CHUNK)
    places = [base + number * CHUNK for number in range(len(handles))]
    driver.map_many(list(zip(places, handles, strict=True)))
    try:
        yield base, handles
    finally:
        driver.unmap_many(places)
        driver.release(base)
        for handle in handles:
            driver.destroy(handle)
