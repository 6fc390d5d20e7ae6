"""The simulated libcuda enforces what NVIDIA's documents say (tests/vendor/cuda/entry.h names the pages)."""

from __future__ import annotations

import ctypes
import os
import threading
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64
from pathlib import Path

import pytest

from tests.helpers import cu as codes
from tests.helpers.cu import AccessDesc, Cu, Location, prop
from tests.helpers.memory import read, readable, write
from tests.helpers.script import Script
from tests.helpers.simulator import CHUNK, Simulator, environment

HINT = 20 << 40
SETUP = """
    from tests.helpers.cu import Cu
    from tests.helpers.simulator import CHUNK, Simulator
    cu = Cu(Simulator("cuda"))
"""


def script(code: str, *args: object) -> Script:
    return Script(SETUP, code, args, environment("cuda"))


@pytest.fixture
def base(cu: Cu):
    va = cu.reserve(4 * CHUNK)
    yield va
    cu.ok("cuMemAddressFree", va, 4 * CHUNK)


@pytest.fixture
def handle(cu: Cu):
    made = cu.create()
    yield made
    cu.ok("cuMemRelease", made)


def test_nothing_goes_before_cuinit_or_without_a_context(cu: Cu) -> None:
    code = "lib = ctypes.CDLL(sys.argv[1]); tell(lib.cuMemRelease(ctypes.c_uint64(0)))"
    with Script("", code, (Simulator("cuda").path,), environment("cuda")) as other:
        assert other.answer() == codes.NOT_INITIALIZED
    seen: list[int] = []

    def elsewhere() -> None:
        seen.append(cu("cuMemGetInfo_v2", byref(c_size_t()), byref(c_size_t())))
        seen.append(cu("cuMemRelease", cu.create()))  # handles need no context

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [codes.INVALID_CONTEXT, 0]
    assert cu("cuDeviceGet", byref(c_int()), 2) == codes.INVALID_DEVICE


def test_a_forked_child_is_refused(cu: Cu) -> None:
    pid = os.fork()
    if not pid:
        os._exit(cu("cuMemRelease", 0) == codes.NOT_INITIALIZED)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_codes_have_names(cu: Cu) -> None:
    name = c_char_p()
    cu.ok("cuGetErrorName", codes.OUT_OF_MEMORY, byref(name))
    assert name.value == b"CUDA_ERROR_OUT_OF_MEMORY"
    assert cu("cuGetErrorString", 123456, byref(name)) == codes.INVALID_VALUE


@pytest.mark.parametrize(
    ("size", "alignment", "hint", "flags"),
    [(0, 0, 0, 0), (CHUNK + 1, 0, 0, 0), (CHUNK, 3, 0, 0), (CHUNK, 0, HINT + 1, 0), (CHUNK, 0, 0, 1)],
)
def test_an_address_range_is_asked_for_as_the_page_says(
    cu: Cu, size: int, alignment: int, hint: int, flags: int
) -> None:
    assert cu("cuMemAddressReserve", byref(c_uint64()), size, alignment, hint, flags) == codes.INVALID_VALUE


def test_a_hint_is_a_hint(cu: Cu) -> None:
    first = cu.reserve(CHUNK, HINT)
    second = cu.reserve(CHUNK, HINT)
    assert first == HINT
    assert second != HINT
    assert cu("cuMemAddressFree", second, 2 * CHUNK) == codes.INVALID_VALUE
    for va in (first, second):
        cu.ok("cuMemAddressFree", va, CHUNK)
    assert cu("cuMemAddressFree", first, CHUNK) == codes.INVALID_VALUE


def test_physical_memory_is_asked_for_as_the_page_says(cu: Cu, cuda: Simulator) -> None:
    out = byref(c_uint64())
    assert cu("cuMemCreate", out, CHUNK + 4096, byref(prop()), 0) == codes.INVALID_VALUE
    assert cu("cuMemCreate", out, CHUNK, byref(prop()), 1) == codes.INVALID_VALUE
    assert cu("cuMemCreate", out, CHUNK, byref(prop(device=2)), 0) == codes.INVALID_DEVICE
    assert cu("cuMemCreate", out, CHUNK, byref(prop(handle_types=8)), 0) == codes.NOT_SUPPORTED
    swapped = prop()
    swapped.location = Location(0, 1)  # as Ascend orders them
    assert cu("cuMemCreate", out, CHUNK, byref(swapped), 0) == codes.INVALID_VALUE
    with cuda.capacity(CHUNK):
        assert cu("cuMemCreate", out, 2 * CHUNK, byref(prop()), 0) == codes.OUT_OF_MEMORY


def test_a_chunk_is_mapped_whole_and_where_nothing_is(cu: Cu, base: int, handle: int) -> None:
    large = cu.create(2 * CHUNK)
    assert cu("cuMemMap", base, CHUNK, 0, large, 0) == codes.INVALID_VALUE
    assert cu("cuMemMap", base, CHUNK, CHUNK, large, 0) == codes.INVALID_VALUE
    assert cu("cuMemMap", base + 3 * CHUNK, 2 * CHUNK, 0, large, 0) == codes.INVALID_VALUE
    assert cu.map(base, large, 2 * CHUNK) == 0
    assert cu.map(base + CHUNK, handle) == codes.INVALID_VALUE
    assert not readable(base)
    assert cu("cuMemAddressFree", base, 4 * CHUNK) == codes.INVALID_VALUE
    assert cu.unmap(base, CHUNK) == codes.INVALID_VALUE
    assert cu.map(base + 2 * CHUNK, handle) == 0
    assert cu.unmap(base, 3 * CHUNK) == 0  # both, from end to end
    assert cu.unmap(base, 2 * CHUNK) == codes.INVALID_VALUE
    cu.release(large)


def test_own_and_imported_handles_mix_and_a_chunk_is_mapped_twice(cu: Cu, base: int, handle: int) -> None:
    fds = [cu.export(handle), cu.export(handle)]
    code, imported = cu.import_(fds[0])  # in the same process
    assert code == 0
    assert [cu.map(base, handle), cu.map(base + CHUNK, imported), cu.map(base + 2 * CHUNK, handle)] == [0, 0, 0]
    assert cu.unmap(base, 3 * CHUNK) == 0
    cu.release(imported)
    for fd in fds:
        os.close(fd)


def test_only_a_chunk_made_for_it_is_exported(cu: Cu) -> None:
    private = cu.create(handle_types=0)
    out = byref(c_int())
    assert cu("cuMemExportToShareableHandle", out, private, codes.FD, 0) == codes.INVALID_VALUE
    assert cu("cuMemExportToShareableHandle", out, private, 8, 0) == codes.NOT_SUPPORTED
    cu.release(private)
    with Path("/dev/null").open() as null:
        assert cu.import_(null.fileno())[0] == codes.INVALID_VALUE
    assert cu.import_(9999)[0] == codes.INVALID_VALUE


def test_a_descriptor_keeps_the_memory(cu: Cu) -> None:
    handle = cu.create()
    free = cu.free_bytes()
    fd = cu.export(handle)
    cu.release(handle)
    assert cu.free_bytes() == free
    copy = os.dup(fd)
    os.close(fd)
    assert cu.free_bytes() == free
    os.close(copy)
    assert cu.free_bytes() == free + CHUNK


def test_importers_share_the_pages_until_they_are_killed(cu: Cu, base: int) -> None:
    handle = cu.create()
    cu.map(base, handle)
    stream, at = cu.stream(), cu.host(4096)
    cu.ok("cuMemsetD8Async", base, 9, CHUNK, stream)
    cu.ok("cuStreamSynchronize", stream)
    code = """
    fd = hear()
    code, theirs = cu.import_(fd)
    os.close(fd)
    base = cu.reserve(CHUNK)
    mapped = cu.map(base, theirs)
    at, stream = cu.host(4096), cu.stream()
    cu.ok("cuMemcpyDtoHAsync_v2", at, base, 4096, stream)
    cu.ok("cuStreamSynchronize", stream)
    tell([code, mapped, ctypes.string_at(at, 1)[0]])
    hear()
    """
    free = cu.free_bytes()
    with script(code) as other:
        fd = cu.export(handle)
        other.say("take it", fd)
        os.close(fd)
        assert other.answer() == [0, 0, 9]
        cu.unmap(base)
        cu.release(handle)
        assert cu.free_bytes() == free
        other.kill()
    assert cu.free_bytes() == free + CHUNK
    cu.ok("cuMemFreeHost", at)
    cu.ok("cuStreamDestroy_v2", stream)


@pytest.fixture
def copying(cu: Cu, base: int, handle: int):
    """A mapped chunk, a page of pinned host memory, a stream."""
    cu.map(base, handle)
    host, stream = cu.host(4096), cu.stream()
    yield base, host, stream
    cu.ok("cuStreamDestroy_v2", stream)
    cu.ok("cuMemFreeHost", host)
    cu.unmap(base)


def test_what_is_mapped_is_not_accessible_yet(cu: Cu, base: int, copying) -> None:
    _, host, _ = copying
    other, broken = cu.create(), cu.stream()
    cu.map(base + CHUNK, other, flags=0)
    cu.ok("cuMemcpyHtoDAsync_v2", base + CHUNK, host, 16, broken)
    assert cu("cuStreamSynchronize", broken) == codes.ILLEGAL_ADDRESS
    desc = AccessDesc(Location(1, 0), codes.READ)
    assert cu("cuMemSetAccess", base, 3 * CHUNK, byref(desc), 1) == codes.INVALID_VALUE
    assert cu("cuMemSetAccess", base, 2 * CHUNK, byref(desc), 1) == 0
    fresh = cu.stream()
    cu.ok("cuMemcpyDtoHAsync_v2", host, base + CHUNK, 16, fresh)
    cu.ok("cuStreamSynchronize", fresh)
    cu.ok("cuMemsetD8Async", base + CHUNK, 0, 16, fresh)
    assert cu("cuStreamSynchronize", fresh) == codes.ILLEGAL_ADDRESS
    for stream in (broken, fresh):
        cu.ok("cuStreamDestroy_v2", stream)
    cu.unmap(base + CHUNK)
    cu.release(other)


def test_copies_are_asynchronous_from_pinned_memory_only(cu: Cu, cuda: Simulator, copying) -> None:
    base, host, stream = copying
    with cuda.held():
        write(host, b"early")
        cu.ok("cuMemcpyHtoDAsync_v2", base, host, 4096, stream)
        assert cu("cuStreamQuery", stream) == codes.NOT_READY
        write(host, b"later")
    cu.ok("cuStreamSynchronize", stream)
    plain = ctypes.create_string_buffer(b"plain", 4096)
    cu.ok("cuMemcpyHtoDAsync_v2", base + 4096, ctypes.addressof(plain), 4096, stream)
    plain.value = b"later"
    cu.ok("cuMemcpyDtoDAsync_v2", base + 8192, base + 4096, 4096, stream)
    cu.ok("cuMemcpyDtoHAsync_v2", ctypes.addressof(plain), base + 8192, 4096, stream)
    cu.ok("cuMemcpyDtoHAsync_v2", host, base, 4096, stream)
    cu.ok("cuStreamSynchronize", stream)
    assert (read(host, 5), plain.value) == (b"later", b"plain")


def test_copies_check_on_which_side_an_address_lies(cu: Cu, copying) -> None:
    base, host, stream = copying
    assert cu("cuMemcpyHtoDAsync_v2", host, base, 16, stream) == codes.INVALID_VALUE
    assert cu("cuMemcpyDtoHAsync_v2", base, base, 16, stream) == codes.INVALID_VALUE
    assert cu("cuMemcpyDtoDAsync_v2", base, host, 16, stream) == codes.INVALID_VALUE
    assert cu("cuMemsetD8Async", host, 0, 16, stream) == codes.INVALID_VALUE
    assert cu("cuMemcpyHtoDAsync_v2", base, host, 16, stream + 999) == codes.INVALID_HANDLE


def test_host_memory_is_registered_once(cu: Cu) -> None:
    pages = ctypes.create_string_buffer(8192)
    at = ctypes.addressof(pages)
    cu.ok("cuMemHostRegister_v2", at, 4096, 0)
    assert cu("cuMemHostRegister_v2", at + 4000, 4096, 0) == codes.ALREADY_REGISTERED
    cu.ok("cuMemHostUnregister", at)
    assert cu("cuMemHostUnregister", at) == codes.NOT_REGISTERED
    assert cu("cuMemFreeHost", at) == codes.INVALID_VALUE


def test_events_order_streams_and_tell_time(cu: Cu, cuda: Simulator, copying) -> None:
    base, host, first = copying
    second, start, end = cu.stream(), cu.event(), cu.event()
    untimed = cu.event(2)
    assert cu("cuEventQuery", start) == 0  # never recorded
    assert cu.elapsed(start, end)[0] == codes.INVALID_HANDLE
    with cuda.held():
        cu.ok("cuEventRecord", start, first)
        cu.ok("cuMemsetD8Async", base, 7, 4096, first)
        cu.ok("cuEventRecord", end, first)
        cu.ok("cuEventRecord", untimed, first)
        cu.ok("cuStreamWaitEvent", second, end, 0)
        cu.ok("cuMemcpyDtoHAsync_v2", host, base, 4096, second)
        assert cu("cuEventQuery", end) == codes.NOT_READY
        assert cu.elapsed(start, end)[0] == codes.NOT_READY
    cu.ok("cuStreamSynchronize", second)
    assert read(host, 4096) == b"\x07" * 4096
    code, milliseconds = cu.elapsed(start, end)
    assert code == 0
    assert milliseconds >= 0
    assert cu.elapsed(start, untimed)[0] == codes.INVALID_HANDLE
    for event in (start, end, untimed):
        cu.ok("cuEventDestroy_v2", event)
    cu.ok("cuStreamDestroy_v2", second)


def test_the_nth_call_fails_without_effect(cu: Cu, cuda: Simulator, base: int, handle: int) -> None:
    cuda.fail(1, 999, "cuMemMap")
    assert [cu.map(base, handle, flags=0), cu.map(base, handle, flags=0), cu.unmap(base)] == [999, 0, 0]
    cuda.fail(5, 999)
    cuda.forgive()
    assert all(cu("cuMemUnmap", 0, CHUNK) == codes.INVALID_VALUE for _ in range(8))
