"""What every driver does with memory: verbs, Ascend's rules, all or nothing (`tests/helpers/drivers.py`: on which)."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from native._native import Driver, DriverError, open_driver
from tests.helpers.drivers import HINT, DriverCase
from tests.helpers.memory import readable
from tests.helpers.window import Window


def test_a_driver_says_what_it_is(driver: Driver, case: DriverCase) -> None:
    assert (driver.name, driver.device) == (case.name, 0)
    assert driver.backing
    assert driver.granularity >= 2 << 20
    assert driver.granularity & (driver.granularity - 1) == 0
    assert driver.free_bytes() % driver.granularity == 0


def test_nonsense_is_refused(case: DriverCase) -> None:
    with pytest.raises(DriverError) as raised:
        open_driver(case.name, -1)
    assert (raised.value.call, raised.value.name, raised.value.code) == ("open_driver", "EINVAL", 22)


# Reserving


def test_a_reservation_is_aligned_and_inaccessible(base: int, chunk: int, window: Window) -> None:
    assert base % chunk == 0
    assert not readable(base)
    assert not readable(base + 4 * chunk - 1)
    assert not window.sees(base)


def test_a_hint_is_obeyed(driver: Driver, chunk: int) -> None:
    for size in (chunk, 2 * chunk):
        assert driver.reserve(size, HINT) == HINT
        driver.release(HINT)


def test_a_taken_hint_is_refused_and_what_is_there_stays(
    driver: Driver, chunk: int, refused, handles, window: Window
) -> None:
    hint = driver.reserve(chunk, HINT)
    driver.map(hint, handles[0])
    window.write(hint, b"mine")

    refused("reserve", chunk, hint)

    assert window.read(hint, 4) == b"mine"
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
    driver: Driver, base: int, chunk: int, handles, window: Window
) -> None:
    driver.map(base, handles[0])
    assert window.read(base, chunk) == bytes(chunk)
    window.write(base + chunk - 5, b"hello")
    driver.unmap(base)
    assert not window.sees(base)

    driver.map(base + 2 * chunk, handles[0])

    assert window.read(base + 3 * chunk - 5, 5) == b"hello"
    driver.unmap(base + 2 * chunk)


def test_a_wiped_chunk_is_zero_mapped_or_not(
    driver: Driver, base: int, chunk: int, handles, window: Window, refused
) -> None:
    driver.map_many([(base, handles[0]), (base + chunk, handles[1])])
    for va in (base, base + chunk):
        window.write(va, b"\xff" * chunk)
    driver.unmap(base + chunk)

    driver.wipe(handles[:2])

    driver.map(base + chunk, handles[1])
    assert window.read(base, 2 * chunk) == bytes(2 * chunk)
    driver.unmap_many([base, base + chunk])
    assert refused("wipe", [999_999]).name == "EINVAL"
    driver.wipe([])


def test_chunks_of_several_sizes_lie_side_by_side(
    driver: Driver, base: int, chunk: int, handles, window: Window
) -> None:
    large = driver.create(2 * chunk)
    driver.map_many([(base + chunk, large), (base, handles[0]), (base + 3 * chunk, handles[1])])
    for i in range(4):
        window.write(base + i * chunk, bytes([i]))
    assert [window.read(base + i * chunk, 1) for i in range(4)] == [bytes([i]) for i in range(4)]
    assert driver.stats().mapped_bytes == 4 * chunk

    driver.unmap_many([base + 3 * chunk, base, base + chunk])

    assert not any(window.sees(base + i * chunk) for i in range(4))
    driver.destroy(large)


def test_stats_count(driver: Driver, base: int, chunk: int, handles) -> None:
    stats = driver.stats()
    assert (stats.handles, stats.own_bytes, stats.imported_bytes, stats.mapped_bytes) == (3, 3 * chunk, 0, 0)
    driver.map(base, handles[0])
    assert (driver.stats().mapped_bytes, driver.stats().reservations) == (chunk, 1)
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


def test_only_what_is_mapped_is_unmapped(driver: Driver, base: int, chunk: int, refused) -> None:
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
        ("permit", (handle, [1])),
        ("wipe", ([handle],)),
        ("map", (base, handle)),
        ("destroy", (0,)),
    ):
        assert refused(verb, *args).name == "EINVAL"
    assert driver.create(chunk) != handle, "a stale handle must not name a new chunk"
    driver.destroy(handle + 1)


def test_a_read_only_mapping_is_not_written(driver: Driver, base: int, handles, window: Window) -> None:
    driver.map(base, handles[0], writable=False)
    assert window.read(base, 16) == bytes(16)
    with pytest.raises(DriverError) as raised:
        window.write(base, b"no")
    assert raised.value.call in ("copy_async", "wait_stream")
    driver.unmap(base)
    driver.map(base, handles[0])
    assert window.read(base, 2) == bytes(2)
    driver.unmap(base)


# All or nothing


def test_map_many_maps_all_or_none(driver: Driver, base: int, chunk: int, refused, handles, window: Window) -> None:
    first, second, _ = handles
    for last in ((base + 2 * chunk, first), (base + chunk, handles[2]), (base + 4 * chunk, handles[2]), (base, 999)):
        refused("map_many", [(base, first), (base + chunk, second), last])
        assert not window.sees(base)
        assert not window.sees(base + chunk)
    driver.map_many([(base, first), (base + chunk, second)])
    driver.unmap_many([base, base + chunk])
    driver.map_many([])


def test_unmap_many_unmaps_all_or_none(driver: Driver, base: int, chunk: int, refused, handles, window: Window) -> None:
    driver.map_many([(base + i * chunk, handle) for i, handle in enumerate(handles)])
    window.write(base, b"still here")
    for vas in ([base, base + chunk, base + 3 * chunk], [base, base], [base + chunk, base + chunk + 4096]):
        assert refused("unmap_many", vas).name == "EINVAL"
        assert window.read(base, 10) == b"still here"
    driver.unmap_many([base + 2 * chunk, base, base + chunk])
    driver.unmap_many([])


def test_a_full_driver_says_so_and_goes_on(case: DriverCase, chunk: int) -> None:
    limited = case.open(limit=3 * chunk)
    kept = [limited.create(chunk), limited.create(chunk)]
    assert limited.free_bytes() == chunk
    for size in (2 * chunk, 1 << 50):
        with pytest.raises(DriverError) as raised:
            limited.create(size)
        assert (raised.value.call, raised.value.name) == ("create", "ENOSPC")
    assert limited.stats().own_bytes == 2 * chunk
    last = limited.create(chunk)
    assert limited.free_bytes() == 0
    limited.destroy(last)
    assert limited.free_bytes() == chunk
    for handle in kept:
        limited.destroy(handle)


def test_a_device_that_is_full_is_not_asked_for_more(driver: Driver, chunk: int, refused) -> None:
    assert refused("create", (driver.free_bytes() // chunk + 4096) * chunk).name == "ENOSPC"


# Threads and lifetime


def test_threads_share_a_driver(driver: Driver, chunk: int) -> None:
    threads, rounds = 4, 10
    start = threading.Barrier(threads)

    def worker(number: int) -> None:
        start.wait(60)
        window = Window(driver, 4096)
        base = driver.reserve(2 * chunk)
        for i in range(rounds):
            pair = [driver.create(chunk), driver.create(chunk)]
            driver.map_many([(base, pair[0]), (base + chunk, pair[1])])
            stamp = bytes([number, i]) * 8
            window.write(base + chunk - 8, stamp)
            assert window.read(base + chunk - 8, 16) == stamp
            driver.unmap_many([base, base + chunk])
            for handle in pair:
                driver.destroy(handle)
        driver.release(base)
        window.close()

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(worker, number) for number in range(threads)]:
            done.result(timeout=100)
