"""Pinned memory, copies in order, and events, on every driver."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_patch.host_memory import Mapping
from native._native import Driver, DriverError
from tests.helpers.drivers import DriverCase
from tests.helpers.memory import buffer, read, write
from tests.helpers.window import Window


@pytest.fixture
def mapped(driver: Driver, base: int, chunk: int, handles: list[int]) -> Iterator[int]:
    """Three chunks side by side."""
    driver.map_many([(base + i * chunk, handle) for i, handle in enumerate(handles)])
    yield base
    driver.unmap_many([base + i * chunk for i in range(3)])


@pytest.fixture
def stream(driver: Driver) -> Iterator[int]:
    made = driver.create_stream()
    yield made
    driver.destroy_stream(made)


@pytest.fixture
def event(driver: Driver) -> Iterator[int]:
    made = driver.create_event()
    yield made
    driver.destroy_event(made)


@pytest.fixture
def pinned(driver: Driver, chunk: int) -> Iterator[int]:
    """Three chunks' bytes of host memory."""
    made = driver.pin(3 * chunk)
    yield made
    driver.unpin(made)


# Host memory


def test_pinned_memory_is_there_and_goes(driver: Driver, chunk: int, refused) -> None:
    at = driver.pin(chunk)
    write(at, b"first")
    write(at + chunk - 4, b"last")
    assert read(at, 5) == b"first"
    assert refused("unpin", at + 4096).name == "EINVAL"
    assert refused("unregister_host", at).name == "EINVAL"
    driver.unpin(at)
    assert refused("unpin", at).name == "EINVAL"
    assert refused("pin", 0).name == "EINVAL"


def test_host_memory_that_is_there_is_registered_once(driver: Driver, refused) -> None:
    with buffer(8 * 4096) as at:
        driver.register_host(at, 4 * 4096)
        assert refused("register_host", at, 4096).name == "EEXIST"
        assert refused("register_host", at + 4096, 4096).name == "EEXIST"
        assert refused("unpin", at).name == "EINVAL"
        driver.unregister_host(at)
        assert refused("unregister_host", at).name == "EINVAL"
        assert refused("register_host", at + 1, 4096).name == "EINVAL"
        assert refused("register_host", at, 0).name == "EINVAL"


def test_a_file_that_is_mapped_read_only_is_registered_too(
    driver: Driver, mapped: int, chunk: int, stream: int, pinned: int, tmp_path: Path
) -> None:
    """A host master is."""
    file = tmp_path / "master"
    file.write_bytes(b"sealed" * 4096)
    with file.open("rb") as opened:
        memory = Mapping(8192, opened.fileno(), writable=False)
    driver.register_host(memory.address, 8192)
    driver.copy_async(stream, [(mapped, memory.address, 8192)], "h2d")
    driver.copy_async(stream, [(pinned, mapped, 8192)], "d2h")
    assert driver.wait_stream(stream, 60)
    assert read(pinned, 8192) == file.read_bytes()[:8192]
    driver.unregister_host(memory.address)
    memory.close()


# Zeros


def test_zeros_come_in_the_order_of_the_stream(
    driver: Driver, mapped: int, chunk: int, stream: int, pinned: int, refused
) -> None:
    write(pinned, b"x" * 2 * chunk)
    driver.copy_async(stream, [(mapped, pinned, 2 * chunk)], "h2d")
    driver.zero_async(stream, [(mapped + 64, 100), (mapped + chunk - 10, 20)])
    driver.copy_async(stream, [(pinned, mapped, 2 * chunk)], "d2h")
    assert driver.wait_stream(stream, 60)
    found = read(pinned, 2 * chunk)
    assert [i for i, byte in enumerate(found) if not byte] == [*range(64, 164), *range(chunk - 10, chunk + 10)]
    assert set(found) == {0, ord("x")}
    assert refused("zero_async", stream, [(mapped + 2 * chunk, 2 * chunk)]).name == "EFAULT"
    assert refused("zero_async", stream + 99, [(mapped, 64)]).name == "EINVAL"


# Copies


def test_bytes_go_there_and_back_across_chunks(
    driver: Driver, mapped: int, chunk: int, stream: int, pinned: int
) -> None:
    data = bytes(range(256)) * (2 * chunk // 256)
    write(pinned, data)
    driver.copy_async(stream, [(mapped + chunk // 2, pinned, 2 * chunk)], "h2d")
    driver.copy_async(stream, [(mapped, mapped + chunk // 2, chunk // 2)], "d2d")
    write_after = pinned + 2 * chunk
    driver.copy_async(stream, [(write_after, mapped, chunk // 2)], "d2h")
    assert driver.wait_stream(stream, 60)
    assert read(write_after, chunk // 2) == data[: chunk // 2]
    assert driver.wait_stream(stream, 0)


def test_one_call_copies_many_and_a_stream_keeps_the_order(
    driver: Driver, mapped: int, stream: int, pinned: int, window: Window
) -> None:
    for i in range(100):
        write(pinned + 64 * i, bytes([i]) * 64)
    driver.copy_async(stream, [(mapped + 64 * (99 - i), pinned + 64 * i, 64) for i in range(100)], "h2d")
    for i in range(50):  # each overwrites the one before
        driver.copy_async(stream, [(mapped, pinned + 64 * i, 64)], "h2d")
    driver.copy_async(stream, [], "h2d")
    assert driver.wait_stream(stream, 60)
    assert window.read(mapped, 64) == bytes([49]) * 64
    assert window.read(mapped + 64, 64) == bytes([98]) * 64


def test_memory_that_is_not_pinned_is_copied_too(driver: Driver, mapped: int, stream: int) -> None:
    source = ctypes.create_string_buffer(b"pageable", 4096)
    back = ctypes.create_string_buffer(4096)
    driver.copy_async(stream, [(mapped, ctypes.addressof(source), 4096)], "h2d")
    assert driver.wait_stream(stream, 60)
    driver.copy_async(stream, [(ctypes.addressof(back), mapped, 4096)], "d2h")
    assert driver.wait_stream(stream, 60)
    assert back.value == b"pageable"


def test_registered_memory_is_copied(driver: Driver, mapped: int, stream: int, window: Window) -> None:
    with buffer(4096) as at:
        driver.register_host(at, 4096)
        write(at, b"registered")
        driver.copy_async(stream, [(mapped, at, 4096)], "h2d")
        assert driver.wait_stream(stream, 60)
        driver.unregister_host(at)
    assert window.read(mapped, 10) == b"registered"


def test_a_copy_outside_what_is_mapped_is_refused(
    driver: Driver, mapped: int, chunk: int, stream: int, pinned: int, refused, window: Window
) -> None:
    window.write(mapped, b"untouched")
    beyond = mapped + 3 * chunk
    for to, source, length, kind in (
        (beyond, pinned, 1, "h2d"),
        (beyond - 64, pinned, 65, "h2d"),
        (pinned, beyond, 1, "d2h"),
        (mapped, beyond, 64, "d2d"),
        (beyond, mapped, 64, "d2d"),
        (mapped, mapped + 32, 64, "d2d"),  # not aligned
        (pinned + 64, pinned, 64, "h2d"),  # no device memory at all
    ):
        refused("copy_async", stream, [(to, source, length)], kind)
    refused("copy_async", stream + 99, [(mapped, pinned, 64)], "h2d")
    refused("copy_async", stream, [(mapped, pinned, 64), (beyond, pinned, 64)], "h2d")
    with pytest.raises(ValueError, match="sideways"):
        driver.copy_async(stream, [(mapped, pinned, 64)], "sideways")
    assert driver.wait_stream(stream, 60)
    assert window.read(mapped, 9) == b"untouched"


def test_a_stream_is_known_until_it_is_destroyed(driver: Driver, refused) -> None:
    stream = driver.create_stream()
    driver.destroy_stream(stream)
    assert refused("destroy_stream", stream).name == "EINVAL"
    assert refused("wait_stream", stream, 1.0).name == "EINVAL"
    again = driver.create_stream()
    assert again != stream
    driver.destroy_stream(again)


def test_destroying_a_stream_waits_for_what_is_on_it(
    driver: Driver, mapped: int, chunk: int, pinned: int, window: Window
) -> None:
    write(pinned, b"\x2a" * 3 * chunk)
    stream = driver.create_stream()
    driver.copy_async(stream, [(mapped, pinned, 3 * chunk)], "h2d")
    driver.destroy_stream(stream)
    write(pinned, b"\x00" * 3 * chunk)
    assert window.read(mapped + 3 * chunk - 16, 16) == b"\x2a" * 16


# Events


def test_an_event_is_the_point_where_it_was_recorded(
    driver: Driver, mapped: int, chunk: int, stream: int, event: int, pinned: int
) -> None:
    other = driver.create_stream()
    write(pinned, b"\x07" * chunk)
    for _ in range(20):
        driver.copy_async(stream, [(mapped, pinned, chunk), (mapped + chunk, pinned, chunk)], "h2d")
        driver.record(event, stream)
        driver.stream_wait(other, event)
        driver.copy_async(other, [(pinned + 2 * chunk, mapped + chunk, chunk)], "d2h")
        assert driver.wait_stream(other, 60)
        assert driver.event_done(event)
        assert read(pinned + 2 * chunk, chunk) == b"\x07" * chunk
        write(pinned + 2 * chunk, bytes(chunk))
    driver.destroy_stream(other)


def test_an_event_is_waited_for_and_tells_the_time(
    driver: Driver, mapped: int, chunk: int, stream: int, event: int, pinned: int
) -> None:
    end = driver.create_event()
    driver.record(event, stream)
    driver.copy_async(stream, [(mapped, pinned, 3 * chunk)], "h2d")
    driver.record(end, stream)
    assert driver.wait_event(end, 60)
    assert driver.event_done(event)
    assert driver.elapsed(event, end) >= 0
    assert driver.elapsed(end, end) == 0
    driver.destroy_event(end)


def test_an_event_that_was_never_recorded_is_no_point(driver: Driver, event: int, stream: int, refused) -> None:
    for verb, args in (
        ("event_done", (event,)),
        ("wait_event", (event, 1.0)),
        ("stream_wait", (stream, event)),
        ("elapsed", (event, event)),
        ("record", (event + 99, stream)),
        ("record", (event, stream + 99)),
        ("destroy_event", (event + 99,)),
    ):
        assert refused(verb, *args).name == "EINVAL"


def test_what_a_simulator_holds_back_is_waited_for_in_vain(
    case: DriverCase, driver: Driver, mapped: int, stream: int, event: int, pinned: int, window: Window
) -> None:
    """Waits end when their time is up, and a copy happens when the device gets to it: not when it was ordered."""
    simulator = case.simulator()
    if simulator is None:  # nobody can hold a real device's streams back
        assert driver.wait_stream(stream, 0)
        return
    write(pinned, b"early")
    with simulator.held():
        driver.copy_async(stream, [(mapped, pinned, 64)], "h2d")
        driver.record(event, stream)
        assert not driver.wait_stream(stream, 0.01)
        assert not driver.wait_event(event, 0.01)
        assert not driver.event_done(event)
        with pytest.raises(DriverError):
            driver.elapsed(event, event)
        write(pinned, b"later")
    assert driver.wait_event(event, 60)
    assert window.read(mapped, 5) == b"later"
