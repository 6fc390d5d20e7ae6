"""The device's bus on the host driver, whose streams obey the same rules, and its pure parts."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.core.model import Bytes
from engine_patch.device_bus import GIB, WIDTH, WINDOW, DeviceBus, places
from engine_patch.host_memory import Mapping
from engine_patch.restoring import MemoryFault
from native._native import Arena, Driver, open_driver
from native.digest import LEAF, TreeDigest, content_digest, portions
from native.protocol import Kind
from tests.helpers.memory import read, write

MIB = 1 << 20
CHUNK = 2 * MIB


class Quiet:
    """Pools that notice when they are asked to wait."""

    def __init__(self) -> None:
        self.waits = 0

    def allocating(self, kind: Kind, arena: Arena) -> Any:
        return nullcontext()

    def live(self, kind: Kind, arena: Arena) -> list[tuple[int, int]]:
        return arena.blocks()

    def synchronize(self) -> None:
        self.waits += 1


@pytest.fixture
def driver() -> Driver:
    return open_driver("host")


@pytest.fixture
def base(driver: Driver) -> Iterator[int]:
    """Four chunks side by side."""
    at, handles = driver.reserve(4 * CHUNK), [driver.create(CHUNK) for _ in range(4)]
    addresses = [at + i * CHUNK for i in range(4)]
    driver.map_many(list(zip(addresses, handles, strict=True)))
    yield at
    driver.unmap_many(addresses)


def bus_of(driver: Driver, pools: Quiet | None = None) -> DeviceBus:
    return DeviceBus(driver, pools or Quiet(), Bytes(weights=GIB + 1, kv=5 * MIB), 2)


def test_addresses_are_reserved_anywhere_and_no_more_than_needed(driver: Driver) -> None:
    bus = bus_of(driver)
    assert bus.room(Kind.WEIGHTS) == (0, 2 * GIB)
    assert bus.room(Kind.KV) == (0, GIB)


def test_bytes_go_and_come_and_are_looked_at_alike(driver: Driver, base: int) -> None:
    bus = bus_of(driver)
    memory = Mapping(3 * CHUNK)
    bus.lock(memory)
    ctypes.memmove(memory.address, bytes(range(256)) * (3 * CHUNK // 256), 3 * CHUNK)
    assert bus.start([(base, memory.address, 3 * CHUNK)], beside=True).wait(None, 60)
    there = [(base, CHUNK), (base + CHUNK, 2 * CHUNK)]
    assert bus.digest(there) == content_digest([(memory.address, 3 * CHUNK)])
    before = bus.samples([base, base + CHUNK, base + 2 * CHUNK], CHUNK)
    assert bus.samples([base + CHUNK], CHUNK) == before[1:2]

    write(base + 2 * CHUNK - 1, b"!")
    after = bus.samples([base, base + CHUNK, base + 2 * CHUNK], CHUNK)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    bus.zero([(base, CHUNK), (base + CHUNK, 10)])
    bus.save([(memory.address, base, 2 * CHUNK)])
    assert read(memory.address, CHUNK + 10) == bytes(CHUNK + 10)
    assert read(memory.address + CHUNK + 10, 1) != b"\0"
    bus.unlock(memory)
    bus.unlock(memory)
    memory.close()


def test_a_digest_of_windows_is_that_of_the_whole() -> None:
    memory = Mapping(5 * LEAF)
    ctypes.memmove(memory.address, bytes(range(251)) * (5 * LEAF // 251), 5 * LEAF // 251 * 251)
    found = TreeDigest()
    for first, length in ((0, 2 * LEAF), (2 * LEAF, LEAF), (3 * LEAF, LEAF + 7)):
        found.add([(memory.address + first, length)])
    assert found.text() == content_digest([(memory.address, 4 * LEAF + 7)])
    with pytest.raises(ValueError, match="only the last"):
        found.add([(memory.address, 1)])
    memory.close()


def test_memory_that_cannot_be_locked_is_said_and_copied_all_the_same(
    driver: Driver, base: int, caplog: pytest.LogCaptureFixture
) -> None:
    bus = bus_of(driver)
    memory = Mapping(CHUNK)
    driver.register_host(memory.address, CHUNK)
    bus.lock(memory)
    assert "copies will be slower" in caplog.text
    bus.unlock(memory)
    assert bus.start([(base, memory.address, CHUNK)], beside=False).wait(None, 60)
    driver.unregister_host(memory.address)


def test_quiet_is_what_torch_says(driver: Driver) -> None:
    pools = Quiet()
    bus_of(driver, pools).quiesce()
    assert pools.waits == 1


def test_a_device_that_does_not_finish_is_a_fault(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    bus = bus_of(driver)
    stuck = SimpleNamespace(zero_async=lambda stream, ranges: None, wait_stream=lambda stream, timeout_s: False)
    monkeypatch.setattr(bus, "_driver", stuck)
    with pytest.raises(MemoryFault, match="did not finish"):
        bus.zero([(0, CHUNK)])


@given(st.lists(st.integers(0, 3 * WINDOW // 1000), max_size=12), st.integers(1, 2000))
def test_windows_are_the_bytes_in_their_order(lengths: list[int], size: int) -> None:
    ranges, at = [], 1000
    for length in lengths:
        ranges.append((at, length))
        at += length + 7
    found = list(portions(ranges, size * 50))
    assert all(sum(n for _, n in pieces) == size * 50 for pieces in found[:-1])
    pieces = [piece for some in found for piece in some if piece[1]]
    merged: list[tuple[int, int]] = []
    for start, length in pieces:
        if merged and merged[-1][0] + merged[-1][1] == start:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        else:
            merged.append((start, length))
    assert merged == [one for one in ranges if one[1]]


@given(st.integers(0, 1 << 48), st.integers(0, 1000))
def test_samples_lie_in_their_piece_and_end_with_it(number: int, rows: int) -> None:
    size = 2 * WIDTH + rows * 64
    address = number * size
    somewhere, last = places(address, size)
    assert address <= somewhere[0]
    assert somewhere[0] + somewhere[1] <= last[0] + WIDTH
    assert last == (address + size - WIDTH, WIDTH)


def test_pieces_too_small_to_sample_are_refused() -> None:
    with pytest.raises(ValueError, match="sampled"):
        places(0, WIDTH)
