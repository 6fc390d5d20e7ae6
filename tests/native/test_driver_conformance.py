"""What every driver does: verbs, Ascend's rules, all or nothing. Later drivers join in `tests/helpers/drivers.py`."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from native._native import Driver, DriverError, DriverStats, open_driver
from native.smaps import mappings
from tests.helpers.drivers import DriverCase
from tests.helpers.memory import read, readable, write

HINT = 0x2000_0000_0000
"""A multiple of 1 GiB that nothing else is put at."""


def facts(driver: Driver) -> tuple[int, ...]:
    stats = driver.stats()
    return tuple(getattr(stats, name) for name in dir(DriverStats) if not name.startswith("_"))


def open_descriptors() -> set[str]:
    """Numbers of this process's descriptors, without the one that lists them."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}


@pytest.fixture
def refused(driver: Driver) -> Callable[..., DriverError]:
    """Make a call that must be refused, and see that it changed nothing."""

    def call(verb: str, *args: object) -> DriverError:
        before = facts(driver)
        with pytest.raises(DriverError) as raised:
            getattr(driver, verb)(*args)
        assert facts(driver) == before
        assert raised.value.remedy
        assert raised.value.remedy in str(raised.value)
        return raised.value

    return call


@pytest.fixture
def base(driver: Driver, chunk: int) -> Iterator[int]:
    """A reservation of four chunks."""
    address = driver.reserve(4 * chunk)
    yield address
    driver.release(address)


@pytest.fixture
def handles(driver: Driver, chunk: int) -> Iterator[list[int]]:
    """Three own chunks."""
    created = [driver.create(chunk) for _ in range(3)]
    yield created
    for handle in created:
        driver.destroy(handle)


# Opening


def test_a_driver_says_what_it_is(driver: Driver, case: DriverCase) -> None:
    assert (driver.name, driver.device, driver.backing) == (case.name, 0, case.backing)
    assert driver.granularity == 2 << 20


@pytest.mark.parametrize("name", ["cuda", "ascend", "gpu", ""])
def test_a_driver_that_is_not_there_is_refused_with_what_is(name: str) -> None:
    with pytest.raises(DriverError, match=f"driver '{name}'") as raised:
        open_driver(name)
    assert raised.value.call == "open_driver"
    assert "host" in raised.value.remedy


@pytest.mark.parametrize(("device", "backing"), [(-1, "auto"), (0, "paper")])
def test_nonsense_is_refused(device: int, backing: str) -> None:
    with pytest.raises(DriverError) as raised:
        open_driver("host", device, 0, backing)
    assert (raised.value.name, raised.value.code) == ("EINVAL", 22)


# Reserving


def test_a_reservation_is_aligned_and_inaccessible(driver: Driver, base: int, chunk: int) -> None:
    assert base % chunk == 0
    assert not readable(base)
    assert not readable(base + 4 * chunk - 1)


def test_a_hint_is_obeyed(driver: Driver, chunk: int) -> None:
    hint = HINT
    assert driver.reserve(chunk, hint) == hint
    driver.release(hint)
    assert driver.reserve(2 * chunk, hint) == hint
    driver.release(hint)


def test_a_taken_hint_is_refused_and_what_is_there_stays(driver: Driver, chunk: int, refused, handles) -> None:
    hint = driver.reserve(chunk, HINT)
    driver.map(hint, handles[0])
    write(hint, b"mine")

    assert refused("reserve", chunk, hint).name == "EEXIST"

    assert read(hint, 4) == b"mine"
    driver.unmap(hint)
    driver.release(hint)


@pytest.mark.parametrize("bytes_off", [1, 4096])
def test_sizes_and_hints_are_whole(chunk: int, refused, bytes_off: int) -> None:
    assert refused("reserve", chunk + bytes_off).name == "EINVAL"
    assert refused("reserve", 0).name == "EINVAL"
    assert refused("reserve", chunk, HINT + chunk).name == "EINVAL"  # Ascend wants 1 GiB
    assert refused("create", chunk + bytes_off).name == "EINVAL"
    assert refused("create", 0).name == "EINVAL"


def test_only_a_reservation_is_released_and_once(driver: Driver, chunk: int, refused) -> None:
    address = driver.reserve(2 * chunk)
    assert refused("release", address + chunk).name == "EINVAL"
    driver.release(address)
    assert refused("release", address).name == "EINVAL"


# Chunks and mapping


def test_a_new_chunk_is_zero_and_keeps_its_content_across_mappings(
    driver: Driver, base: int, chunk: int, handles
) -> None:
    driver.map(base, handles[0])
    assert read(base, chunk) == bytes(chunk)
    write(base + chunk - 5, b"hello")
    driver.unmap(base)
    assert not readable(base)

    driver.map(base + 2 * chunk, handles[0])

    assert read(base + 3 * chunk - 5, 5) == b"hello"
    driver.unmap(base + 2 * chunk)


def test_chunks_of_several_sizes_lie_side_by_side(driver: Driver, base: int, chunk: int, handles) -> None:
    large = driver.create(2 * chunk)
    driver.map_many([(base + chunk, large), (base, handles[0]), (base + 3 * chunk, handles[1])])
    for i in range(4):
        write(base + i * chunk, bytes([i]))
    assert [read(base + i * chunk, 1) for i in range(4)] == [bytes([i]) for i in range(4)]
    assert driver.stats().mapped_bytes == 4 * chunk

    driver.unmap_many([base + 3 * chunk, base, base + chunk])

    assert not any(readable(base + i * chunk) for i in range(4))
    driver.destroy(large)


def test_stats_count_and_huge_pages_are_measured(driver: Driver, base: int, chunk: int, handles) -> None:
    stats = driver.stats()
    assert (stats.handles, stats.own_bytes, stats.imported_bytes) == (3, 3 * chunk, 0)
    driver.map_many([(base + i * chunk, handle) for i, handle in enumerate(handles)])
    for i in range(3):
        write(base + i * chunk, b"x")  # a huge page shows once it is touched

    inside = [one for one in mappings() if one.start >= base and one.end <= base + 3 * chunk]

    assert sum(one.fields["ShmemPmdMapped"] for one in inside) == stats.huge_bytes
    driver.unmap_many([base + i * chunk for i in range(3)])


def test_a_fork_does_not_get_the_pages(driver: Driver, base: int, handles) -> None:
    driver.map(base, handles[0])
    pid = os.fork()
    if not pid:
        os._exit(1 if readable(base) else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    driver.unmap(base)


# Rules


def test_a_chunk_is_mapped_at_one_address(driver: Driver, base: int, chunk: int, refused, handles) -> None:
    driver.map(base, handles[0])
    assert refused("map", base + chunk, handles[0]).name == "EBUSY"
    driver.unmap(base)


def test_an_address_holds_one_chunk(driver: Driver, base: int, chunk: int, refused, handles) -> None:
    large = driver.create(2 * chunk)
    driver.map(base + chunk, large)
    assert refused("map", base + chunk, handles[0]).name == "EEXIST"
    assert refused("map", base + 2 * chunk, handles[0]).name == "EEXIST"
    driver.unmap(base + chunk)
    driver.map(base + 2 * chunk, handles[0])
    assert refused("map", base + chunk, large).name == "EEXIST"
    driver.unmap(base + 2 * chunk)
    driver.destroy(large)


def test_a_mapping_lies_whole_in_one_reservation(driver: Driver, base: int, chunk: int, refused, handles) -> None:
    large = driver.create(2 * chunk)
    assert refused("map", base + 3 * chunk, large).name == "EINVAL"
    assert refused("map", base + 4 * chunk, handles[0]).name == "EINVAL"
    assert refused("map", base - chunk, handles[0]).name == "EINVAL"
    assert refused("map", base + 4096, handles[0]).name == "EINVAL"
    driver.destroy(large)


def test_only_what_is_mapped_is_unmapped(driver: Driver, base: int, chunk: int, refused, handles) -> None:
    large = driver.create(2 * chunk)
    driver.map(base, large)
    assert refused("unmap", base + chunk).name == "EINVAL"
    assert refused("unmap", base + 2 * chunk).name == "EINVAL"
    driver.unmap(base)
    assert refused("unmap", base).name == "EINVAL"
    driver.destroy(large)


def test_nothing_mapped_is_destroyed_or_released(driver: Driver, base: int, refused, handles) -> None:
    driver.map(base, handles[0])
    assert refused("destroy", handles[0]).name == "EBUSY"
    assert refused("release", base).name == "EBUSY"
    driver.unmap(base)


def test_a_handle_is_known_from_create_to_destroy(driver: Driver, base: int, chunk: int, refused) -> None:
    handle = driver.create(chunk)
    driver.destroy(handle)
    for verb, args in (
        ("destroy", (handle,)),
        ("export_handle", (handle,)),
        ("map", (base, handle)),
        ("destroy", (0,)),
    ):
        assert refused(verb, *args).name == "EINVAL"
    assert driver.create(chunk) != handle, "a stale handle must not name a new chunk"
    driver.destroy(handle + 1)


def test_a_handle_is_exported_once(driver: Driver, refused, handles) -> None:
    os.close(driver.export_handle(handles[0]))
    assert refused("export_handle", handles[0]).name == "EALREADY"


def test_imported_chunks_are_mapped_but_not_exported(
    case: DriverCase, driver: Driver, base: int, chunk: int, refused, handles
) -> None:
    other = case.open()
    shareable = driver.export_handle(handles[0])
    imported = other.import_handle(shareable, chunk)
    with pytest.raises(DriverError, match="imported") as raised:
        other.export_handle(imported)
    assert raised.value.name == "EPERM"
    with pytest.raises(DriverError, match="holds that chunk already"):
        other.import_handle(shareable, chunk)
    assert refused("import_handle", shareable, chunk).name == "EALREADY"
    os.close(shareable)

    there = other.reserve(chunk)
    other.map(there, imported)
    driver.map(base, handles[0])
    write(there, b"shared")

    assert read(base, 6) == b"shared"
    assert (other.stats().imported_bytes, other.stats().own_bytes) == (chunk, 0)
    driver.unmap(base)
    other.unmap(there)
    other.destroy(imported)
    other.release(there)


def test_a_reservation_holds_only_own_or_only_imported_chunks(
    case: DriverCase, driver: Driver, base: int, chunk: int, refused, handles
) -> None:
    owner = case.open()
    foreign = owner.create(chunk)
    shareable = owner.export_handle(foreign)
    imported = driver.import_handle(shareable, chunk)
    os.close(shareable)

    driver.map(base, handles[0])
    assert refused("map", base + chunk, imported).name == "EPERM"
    driver.unmap(base)
    driver.map(base, imported)  # empty again: the other kind may come
    assert refused("map", base + chunk, handles[0]).name == "EPERM"

    driver.unmap(base)
    driver.destroy(imported)
    owner.destroy(foreign)


def test_only_a_writable_chunk_of_that_size_is_imported(case: DriverCase, driver: Driver, chunk: int, refused) -> None:
    owner = case.open()
    shareable = owner.export_handle(owner.create(chunk))
    read_only = os.open(f"/proc/self/fd/{shareable}", os.O_RDONLY)
    assert refused("import_handle", shareable, 2 * chunk).name == "EINVAL"
    assert refused("import_handle", read_only, chunk).name == "EINVAL"
    os.close(read_only)
    os.close(shareable)
    assert refused("import_handle", shareable, chunk).name == "EBADF"
    assert refused("import_handle", 1 << 40, chunk).name == "EBADF"


def test_what_is_no_memory_is_not_imported(chunk: int, refused, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    os.truncate(file, chunk)
    for path in (file, Path("/dev/null")):
        with path.open("r+b") as opened:
            assert refused("import_handle", opened.fileno(), chunk).name == "EINVAL"


# All or nothing


def test_map_many_maps_all_or_none(driver: Driver, base: int, chunk: int, refused, handles) -> None:
    first, second, _ = handles
    for last in ((base + 2 * chunk, first), (base + chunk, handles[2]), (base + 4 * chunk, handles[2]), (base, 999)):
        refused("map_many", [(base, first), (base + chunk, second), last])
        assert not readable(base)
        assert not readable(base + chunk)
    driver.map_many([(base, first), (base + chunk, second)])
    driver.unmap_many([base, base + chunk])


def test_unmap_many_unmaps_all_or_none(driver: Driver, base: int, chunk: int, refused, handles) -> None:
    driver.map_many([(base + i * chunk, handle) for i, handle in enumerate(handles)])
    write(base, b"still here")
    for vas in ([base, base + chunk, base + 3 * chunk], [base, base], [base + chunk, base + chunk + 4096]):
        assert refused("unmap_many", vas).name == "EINVAL"
        assert read(base, 10) == b"still here"
    driver.unmap_many([base + 2 * chunk, base, base + chunk])
    driver.unmap_many([])


def test_a_full_driver_says_so_and_goes_on(case: DriverCase) -> None:
    chunk = 2 << 20
    driver = case.open(limit=3 * chunk)
    kept = [driver.create(chunk), driver.create(chunk)]
    assert driver.free_bytes() == chunk
    for size in (2 * chunk, 1 << 50):
        with pytest.raises(DriverError) as raised:
            driver.create(size)
        assert (raised.value.call, raised.value.name) == ("create", "ENOSPC")
    assert driver.stats().own_bytes == 2 * chunk
    last = driver.create(chunk)
    assert driver.free_bytes() == 0
    driver.destroy(last)
    assert driver.free_bytes() == chunk
    for handle in kept:
        driver.destroy(handle)


def test_a_machine_that_is_full_is_not_asked_for_more(driver: Driver, chunk: int, refused) -> None:
    assert refused("create", (driver.free_bytes() // chunk + 4096) * chunk).name == "ENOSPC"


# Threads and lifetime


def test_threads_share_a_driver(driver: Driver, chunk: int) -> None:
    threads, rounds = 4, 25
    start = threading.Barrier(threads)

    def worker(number: int) -> None:
        start.wait()
        base = driver.reserve(2 * chunk)
        for i in range(rounds):
            pair = [driver.create(chunk), driver.create(chunk)]
            driver.map_many([(base, pair[0]), (base + chunk, pair[1])])
            stamp = bytes([number, i]) * 8
            write(base + chunk - 8, stamp)
            assert read(base + chunk - 8, 16) == stamp
            driver.unmap_many([base, base + chunk])
            for handle in pair:
                driver.destroy(handle)
        driver.release(base)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(worker, number) for number in range(threads)]:
            done.result(timeout=60)


def test_dropping_a_driver_leaves_what_is_mapped_and_closes_the_rest(case: DriverCase) -> None:
    chunk = 2 << 20
    before = open_descriptors()
    driver = case.open()
    used, empty = driver.reserve(chunk), driver.reserve(chunk, HINT)
    driver.map(used, driver.create(chunk))
    driver.create(chunk)
    write(used, b"kept")

    del driver
    gc.collect()

    assert read(used, 4) == b"kept"
    assert open_descriptors() <= before
    assert not any(one.start <= empty < one.end for one in mappings())
