"""The restore, measured on one device without an engine: what pages cost, and how near a restore comes to the bus."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from native._native import Driver, DriverError, OrderedCopy, crc32c
from native.verify.report import Section, per_gib, rate

ROUNDS = 5
TENSORS = 1000
PATIENCE_S = 120.0
_PATTERN = bytes((7 * i + i // 251) & 255 for i in range(1 << 16))


@dataclass(frozen=True)
class Bench:
    """`size` bytes mapped at `base` in chunks of `chunk`, and as many pinned at `host`."""

    driver: Driver
    size: int
    chunk: int
    base: int
    host: int
    handles: tuple[int, ...]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(self.base + i * self.chunk, handle) for i, handle in enumerate(self.handles)]

    @property
    def addresses(self) -> list[int]:
        return [va for va, _ in self.pairs]


@contextmanager
def bench(driver: Driver, size: int, chunk: int) -> Iterator[tuple[Bench, float]]:
    """The bench, mapped, and how long its chunks took to create. Raises DriverError."""
    base = driver.reserve(size)
    host = driver.pin(size)
    handles: list[int] = []
    try:
        began = time.perf_counter()
        while len(handles) * chunk < size:
            handles.append(driver.create(chunk))
        ready = Bench(driver, size, chunk, base, host, tuple(handles))
        took = time.perf_counter() - began
        driver.map_many(ready.pairs)
        yield ready, took
        driver.unmap_many(ready.addresses)
    finally:
        for handle in handles:
            driver.destroy(handle)
        driver.unpin(host)
        driver.release(base)


def pages(on: Bench, creating: float) -> Section:
    """What creating, zeroing, mapping and unmapping cost."""
    unmaps, maps = [], []
    for _ in range(ROUNDS):
        unmaps.append(_seconds(lambda: on.driver.unmap_many(on.addresses)))
        maps.append(_seconds(lambda: on.driver.map_many(on.pairs)))
    wiping = _seconds(lambda: on.driver.wipe(on.handles))
    rows = (
        ("bytes, chunk", f"{on.size >> 20} MiB in chunks of {on.chunk >> 20} MiB"),
        ("create, zeroed", per_gib(on.size, creating)),
        ("wipe", per_gib(on.size, wiping)),
        ("map (aim: 1 ms a GiB)", per_gib(on.size, statistics.median(maps))),
        ("unmap (aim: 1 ms a GiB)", per_gib(on.size, statistics.median(unmaps))),
    )
    return Section("Pages", rows)


def restore(on: Bench) -> Section:
    """A restore of many tensors against one large copy of the same bytes, in turn."""
    whole = [(on.base, on.host, on.size)]
    each = on.size // TENSORS // 64 * 64
    tensors = [(on.base + i * each, on.host + i * each, each) for i in range(TENSORS)]
    limits, restores, backs = [], [], []
    for _ in range(ROUNDS):
        limits.append(_copied(on, whole, "h2d"))
        restores.append(_copied(on, tensors, "h2d"))
        backs.append(_copied(on, [(on.host, on.base, on.size)], "d2h"))
    bytes_ = each * TENSORS
    ratio = statistics.median((bytes_ / mine) / (on.size / limit) for mine, limit in zip(restores, limits, strict=True))
    rows = (
        ("one copy, host to device (the limit)", rate(on.size, statistics.median(limits))),
        (f"restore of {TENSORS} tensors", rate(bytes_, statistics.median(restores))),
        ("restore over limit (floor 0.80, aim 0.95)", f"{ratio:.3f}"),
        ("one copy, device to host", rate(on.size, statistics.median(backs))),
    )
    return Section("Restore", rows)


def canary(on: Bench) -> Section:
    """What is written is read back after the pages were away and came back at another chunk's address."""
    wanted = fill(on.host, on.size)
    _copied(on, [(on.base, on.host, on.size)], "h2d")
    on.driver.unmap_many(on.addresses)
    turned = list(zip(on.addresses, reversed(on.handles), strict=True))
    on.driver.map_many(turned)
    ctypes.memset(on.host, 0, on.size)
    count = len(on.handles)
    back = [(on.host + i * on.chunk, on.base + (count - 1 - i) * on.chunk, on.chunk) for i in range(count)]
    _copied(on, back, "d2h")
    found = crc32c(on.host, on.size)
    on.driver.unmap_many(on.addresses)
    on.driver.map_many(on.pairs)
    on.driver.wipe(on.handles)
    _copied(on, [(on.host, on.base, on.size)], "d2h")
    blank = crc32c(on.host, on.size) == _crc_of_zeros(on.host, on.size)
    failure = "" if found == wanted else f"CRC-32C {found:#010x} came back, {wanted:#010x} was written"
    failure = failure or ("" if blank else "a wiped chunk is not zero")
    return Section("Canary", (("bytes compared", f"{on.size >> 20} MiB"), ("CRC-32C", f"{wanted:#010x}")), failure)


def fill(address: int, size: int) -> int:
    """Write a pattern that no chunk boundary repeats; its CRC-32C."""
    for offset in range(0, size, len(_PATTERN)):
        length = min(len(_PATTERN), size - offset)
        ctypes.memmove(address + offset, _PATTERN, length)
        ctypes.memmove(address + offset, offset.to_bytes(8, "little"), min(8, length))
    return crc32c(address, size)


def attempt(title: str, step: Callable[[], Section]) -> Section:
    """A step whose refusal by the driver is its result."""
    try:
        return step()
    except (DriverError, TimeoutError) as error:
        return Section(title, failure=str(error))


def _copied(on: Bench, entries: list[tuple[int, int, int]], kind: str) -> float:
    """Seconds from giving the copy until it is done, by this process's clock."""
    began = time.perf_counter()
    job = OrderedCopy(on.driver, entries, kind, 2)
    if not job.wait(None, PATIENCE_S):
        raise TimeoutError(f"a copy of {sum(length for *_, length in entries)} bytes took over {PATIENCE_S:g} s")
    return time.perf_counter() - began


def _crc_of_zeros(scratch: int, size: int) -> int:
    """`scratch` is overwritten."""
    ctypes.memset(scratch, 0, size)
    return crc32c(scratch, size)


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
