"""Long copies by a driver, in order and with progress, on every driver; and what torch's pluggable allocator calls."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

import native._native as module
from native._native import Arena, Driver, DriverError, OrderedCopy, serve_device
from tests.helpers.drivers import DriverCase
from tests.helpers.memory import read, write

Pieces = list[tuple[int, int, int]]


@pytest.fixture
def mapped(driver: Driver, chunk: int) -> Iterator[tuple[int, int, int]]:
    """Mapped device memory, pinned host memory, and how many bytes each has."""
    size = 8 * chunk
    base, host = driver.reserve(size), driver.pin(size)
    handle = driver.create(size)
    driver.map(base, handle)
    yield base, host, size
    driver.unmap(base)
    driver.destroy(handle)
    driver.release(base)
    driver.unpin(host)


def pieces(to: int, source: int, size: int, count: int) -> Pieces:
    each = size // count
    return [(to + i * each, source + i * each, each) for i in range(count)]


def pattern(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


def test_what_goes_out_comes_back(driver: Driver, mapped: tuple[int, int, int]) -> None:
    base, host, size = mapped
    write(host, pattern(size))
    there = OrderedCopy(driver, pieces(base, host, size, 64), "h2d", 2)
    assert there.wait(1, 60)
    assert there.entries_done >= 1
    assert there.wait(None, 60)
    assert (there.done, there.entries_done, there.bytes_done, there.bytes_total) == (True, 64, size, size)
    assert there.seconds > 0
    write(host, bytes(size))

    assert OrderedCopy(driver, pieces(host, base, size, 3), "d2h").wait(None, 60)

    assert read(host, size // 3 * 3) == pattern(size)[: size // 3 * 3]


def test_nothing_is_told_before_it_is_there(case: DriverCase, driver: Driver, mapped: tuple[int, int, int]) -> None:
    """On the simulators, whose streams can be held."""
    simulator = case.simulator()
    if simulator is None:
        return
    base, host, size = mapped
    with simulator.held():
        copy = OrderedCopy(driver, pieces(base, host, size, 2), "h2d")
        assert not copy.wait(1, 0.01)
        assert (copy.entries_done, copy.bytes_done, copy.done) == (0, 0, False)
    assert copy.wait(None, 60)
    assert copy.entries_done == 2


def test_an_empty_copy_is_done(driver: Driver, mapped: tuple[int, int, int]) -> None:
    copy = OrderedCopy(driver, [], "h2d")
    assert copy.wait(None, 60)
    assert (copy.done, copy.bytes_total, copy.entries_done) == (True, 0, 0)


def test_a_cancelled_copy_touches_nothing_afterwards(driver: Driver, mapped: tuple[int, int, int]) -> None:
    base, host, size = mapped
    copy = OrderedCopy(driver, pieces(base, host, size, 64), "h2d")
    copy.cancel()
    assert copy.cancelled or copy.done
    done = copy.bytes_done
    assert done == copy.bytes_done
    assert copy.wait(0, 60)


def test_nonsense_is_refused_before_anything_is_copied(driver: Driver, mapped: tuple[int, int, int]) -> None:
    base, host, size = mapped
    write(host, b"x" * 64)
    with pytest.raises(DriverError) as raised:
        OrderedCopy(driver, [(base, host, 64), (base + size, host + 64, 64)], "h2d")
    assert (raised.value.call, raised.value.name) == ("copy_async", "EFAULT")
    with pytest.raises(ValueError, match="h2d, d2h or d2d"):
        OrderedCopy(driver, [(base, host, 64)], "up")
    copy = OrderedCopy(driver, [(base, host, 64)], "h2d")
    with pytest.raises(ValueError, match="only 1 entries"):
        copy.wait(2)
    assert copy.wait(None, 60)


def test_dropping_a_copy_waits_for_it(driver: Driver, mapped: tuple[int, int, int]) -> None:
    base, host, size = mapped
    for _ in range(4):
        OrderedCopy(driver, pieces(base, host, size, 16), "h2d")


def test_torch_allocates_from_the_arena_that_is_served(driver: Driver, chunk: int) -> None:
    """By the C functions' own interface, as CUDAPluggableAllocator and NPUPluggableAllocator call them."""
    library = ctypes.CDLL(module.__file__)
    library.vnpu_malloc.restype = ctypes.c_void_p
    library.vnpu_malloc.argtypes = [ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
    library.vnpu_free.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p]
    library.vnpu_free.restype = None
    base = driver.reserve(2 * chunk)
    arena = Arena(base, 2 * chunk, chunk, chunk)
    assert library.vnpu_malloc(512, 3, None) is None
    serve_device(3, arena)
    try:
        block = library.vnpu_malloc(chunk // 2, 3, None)
        assert base <= block < base + chunk
        assert block % 512 == 0
        with pytest.raises(ValueError, match="live blocks"):
            serve_device(5, Arena(base, chunk, chunk, chunk))
        assert library.vnpu_malloc(512, 4, None) is None
        assert library.vnpu_malloc(chunk, 3, None) is None, "only what is mapped is given"
        assert arena.spilled_blocks == 1
        for nonsense in (0, -1):
            assert library.vnpu_malloc(nonsense, 3, None) is None
        for device in (-1, 64):
            assert library.vnpu_malloc(512, device, None) is None
    finally:
        serve_device(3, None)
    assert library.vnpu_malloc(512, 3, None) is None
    library.vnpu_free(block, chunk // 2, 3, None)
    library.vnpu_free(base + chunk, 512, 3, None)
    library.vnpu_free(1 << 20, 512, 3, None)
    assert arena.live_bytes == 0
    driver.release(base)
    with pytest.raises(ValueError, match="0 to 63"):
        serve_device(64, arena)
