"""The host driver only: what the kernel shows of its pages, files and mappings, and what it refuses."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from native._native import Driver, DriverError, open_driver
from native.smaps import mappings
from tests.helpers.drivers import HINT, HOST, DriverCase
from tests.helpers.memory import read, readable, write


@pytest.fixture(params=HOST, ids=lambda case: case.id)
def case(request: pytest.FixtureRequest) -> DriverCase:
    kind: DriverCase = request.param
    return kind


def open_descriptors() -> set[str]:
    """Numbers of this process's descriptors, without the one that lists them."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}


def test_a_driver_says_what_it_is_made_of(driver: Driver, case: DriverCase) -> None:
    assert (driver.name, driver.backing, driver.granularity) == ("host", case.backing, 2 << 20)
    assert (driver.sharing, driver.share_id()) == ("descriptor", os.getpid())


@pytest.mark.parametrize("name", ["gpu", ""])
def test_a_driver_that_is_not_there_is_refused_with_what_is(name: str) -> None:
    with pytest.raises(DriverError, match=f"driver '{name}'") as raised:
        open_driver(name)
    assert raised.value.call == "open_driver"
    assert "host" in raised.value.remedy


def test_a_backing_that_is_none_is_refused() -> None:
    with pytest.raises(DriverError) as raised:
        open_driver("host", 0, 0, "paper")
    assert (raised.value.name, raised.value.code) == ("EINVAL", 22)


def test_a_taken_hint_has_a_name(driver: Driver, chunk: int, refused) -> None:
    assert driver.reserve(chunk, HINT) == HINT
    assert refused("reserve", chunk, HINT).name == "EEXIST"
    driver.release(HINT)


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


def test_a_read_only_descriptor_gives_a_chunk_that_is_mapped_read_only(
    case: DriverCase, driver: Driver, base: int, chunk: int, refused
) -> None:
    """As the daemon lends what others own (shares)."""
    owner = case.open()
    shareable = owner.export_handle(owner.create(chunk))
    read_only = os.open(f"/proc/self/fd/{shareable}", os.O_RDONLY)
    handle = driver.import_handle(read_only, chunk)
    assert refused("map", base, handle).name == "EACCES"
    driver.map_many([(base, handle)], False)
    assert read(base, 4) == bytes(4)
    driver.unmap(base)
    driver.destroy(handle)
    os.close(read_only)
    os.close(shareable)


def test_only_a_chunk_of_that_size_is_imported(case: DriverCase, driver: Driver, chunk: int, refused) -> None:
    owner = case.open()
    shareable = owner.export_handle(owner.create(chunk))
    write_only = os.open(f"/proc/self/fd/{shareable}", os.O_WRONLY)
    assert refused("import_handle", shareable, 2 * chunk).name == "EINVAL"
    assert refused("import_handle", write_only, chunk).name == "EINVAL"
    os.close(write_only)
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


def test_two_drivers_of_one_process_share(case: DriverCase, driver: Driver, base: int, chunk: int, handles) -> None:
    other = case.open()
    shareable = driver.export_handle(handles[0])
    imported = other.import_handle(shareable, chunk)
    os.close(shareable)
    there = other.reserve(chunk)
    other.map(there, imported)
    driver.map(base, handles[0])
    write(there, b"shared")
    assert read(base, 6) == b"shared"
    driver.unmap(base)
    other.unmap(there)
    other.destroy(imported)
    other.release(there)
