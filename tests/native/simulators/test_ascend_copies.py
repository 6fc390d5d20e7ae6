"""The simulated libascendcl copies, waits and orders as CANN says (tests/vendor/ascend/entry.h names the pages)."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_void_p
from pathlib import Path

import pytest

from tests.helpers import acl as codes
from tests.helpers.acl import AccessDesc, Acl, Location
from tests.helpers.memory import read, write
from tests.helpers.script import Script
from tests.helpers.simulator import CHUNK, Simulator, environment

SETUP = """
    from tests.helpers.acl import Acl
    from tests.helpers.simulator import CHUNK, Simulator
    acl = Acl(Simulator("ascend"))
"""


@pytest.fixture
def base(acl: Acl):
    va = acl.reserve(4 * CHUNK)
    yield va
    acl.ok("aclrtReleaseMemAddress", va)


@pytest.fixture
def handle(acl: Acl):
    made = acl.malloc()
    yield made
    acl.ok("aclrtFreePhysical", made)


@pytest.fixture
def copying(acl: Acl, base: int, handle: int):
    """A mapped chunk, a page of pinned host memory, a stream."""
    acl.map(base, handle)
    host, stream = acl.host(4096), acl.stream()
    yield base, host, stream
    acl.ok("aclrtDestroyStream", stream)
    acl.ok("aclrtFreeHost", host)
    acl.unmap(base)


def test_new_memory_is_not_clean(acl: Acl, copying) -> None:
    base, host, stream = copying
    acl.copy(host, base, 4096, codes.D2H, stream)
    acl.sync(stream)
    assert read(host, 4096) == b"\xa5" * 4096


def test_a_copy_from_pinned_memory_is_not_done_when_the_call_returns(acl: Acl, ascend: Simulator, copying) -> None:
    base, host, stream = copying
    with ascend.held():
        write(host, b"early")
        assert acl.copy(base, host, 4096, codes.H2D, stream) == 0
        assert acl.sync(stream, 1) == codes.STREAM_SYNC_TIMEOUT
        write(host, b"later")  # changed before it was read
    assert acl.sync(stream) == 0
    write(host, b"-----")
    assert (acl.copy(host, base, 4096, codes.D2H, stream), acl.sync(stream)) == (0, 0)
    assert read(host, 5) == b"later"


def test_a_copy_from_other_memory_is_done_when_the_call_returns(acl: Acl, copying) -> None:
    base, host, stream = copying
    plain = ctypes.create_string_buffer(b"plain", 4096)
    assert acl.copy(base, ctypes.addressof(plain), 4096, codes.H2D, stream) == 0
    plain.value = b"later"
    assert (acl.copy(host, base, 4096, codes.D2H, stream), acl.sync(stream)) == (0, 0)
    assert read(host, 5) == b"plain"


def test_memory_that_is_registered_counts_as_pinned(acl: Acl, ascend: Simulator, copying) -> None:
    base, _, stream = copying
    out = c_void_p()
    pages = ctypes.create_string_buffer(3 * 4096)
    at = (ctypes.addressof(pages) + 4095) // 4096 * 4096
    assert acl("aclrtHostRegister", at + 1, 4096, 0, byref(out)) == codes.PARAM_INVALID
    assert acl("aclrtHostRegister", at, 4096, 0, byref(out)) == 0
    assert acl("aclrtHostRegister", at, 4096, 0, byref(out)) == codes.PARAM_INVALID
    with ascend.held():
        assert acl.copy(base, at, 4096, codes.H2D, stream) == 0
    assert acl.sync(stream) == 0
    assert acl("aclrtHostUnregister", at) == 0
    assert acl("aclrtHostUnregister", at) == codes.PARAM_INVALID


def test_a_copy_is_checked_against_its_kind(acl: Acl, copying) -> None:
    base, host, stream = copying
    assert acl.copy(host, host, 16, codes.H2H, stream) == codes.FEATURE_NOT_SUPPORT
    assert acl.copy(host, base, 16, codes.H2D, stream) == codes.PARAM_INVALID
    assert acl.copy(base, base + 64, 16, codes.D2H, stream) == codes.PARAM_INVALID
    assert acl("aclrtMemcpyAsync", base, 15, host, 16, codes.H2D, stream) == codes.PARAM_INVALID
    assert acl.copy(base, host, 16, codes.H2D, stream + 1000) == codes.INVALID_HANDLE
    assert acl("aclrtMemsetAsync", base, 15, 0, 16, stream) == codes.PARAM_INVALID


def test_a_copy_that_leaves_the_mapping_breaks_the_stream(acl: Acl, base: int, copying) -> None:
    _, host, _ = copying
    broken = acl.stream()
    assert acl.copy(base + CHUNK - 8, host, 16, codes.H2D, broken) == 0
    assert acl.sync(broken) == codes.SYS_DMA
    acl.ok("aclrtDestroyStream", broken)


def test_read_only_memory_is_not_written(acl: Acl, base: int, copying) -> None:
    _, host, stream = copying
    read_only = AccessDesc(1, Location(0, 1))
    assert acl("aclrtMemSetAccess", base, 2 * CHUNK, byref(read_only), 1) == codes.PARAM_INVALID
    assert acl("aclrtMemSetAccess", base, CHUNK, byref(read_only), 1) == 0
    assert (acl.copy(host, base, 16, codes.D2H, stream), acl.sync(stream)) == (0, 0)
    broken = acl.stream()
    assert (acl.copy(base, host, 16, codes.H2D, broken), acl.sync(broken)) == (0, codes.SYS_DMA)
    acl.ok("aclrtDestroyStream", broken)


def test_a_device_has_so_many_streams(tmp_path: Path) -> None:
    code = "tell([acl('aclrtCreateStream', ctypes.byref(ctypes.c_void_p())) for _ in range(3)])"
    small = environment("ascend", SIMULATED_CARD=str(tmp_path), SIMULATED_STREAMS="2")
    with Script(SETUP, code, (), small) as other:
        assert other.answer() == [0, 0, codes.NO_STREAM_RESOURCE]


# Events


def test_events_order_streams(acl: Acl, ascend: Simulator, copying) -> None:
    base, host, first = copying
    second, event = acl.stream(), acl.event()
    assert acl("aclrtStreamWaitEvent", second, event) == 0  # nothing recorded: nothing to wait for
    with ascend.held():
        acl.ok("aclrtMemsetAsync", base, 4096, 7, 4096, first)
        acl.ok("aclrtRecordEvent", event, first)
        acl.ok("aclrtStreamWaitEvent", second, event)
        acl.copy(host, base, 4096, codes.D2H, second)
        assert not acl.recorded(event)
        assert acl("aclrtSynchronizeEventWithTimeout", event, 1) == codes.EVENT_SYNC_TIMEOUT
    assert acl.sync(second) == 0
    assert acl.recorded(event)
    assert read(host, 4096) == b"\x07" * 4096
    acl.ok("aclrtDestroyEvent", event)
    acl.ok("aclrtDestroyStream", second)


def test_an_event_does_what_its_flags_say(acl: Acl, copying) -> None:
    _, _, stream = copying
    timed, waitable = acl.event(codes.TIME_LINE), acl.event(codes.SYNC)
    assert acl("aclrtStreamWaitEvent", stream, timed) == codes.PARAM_INVALID
    for event in (timed, waitable):
        acl.ok("aclrtRecordEvent", event, stream)
    acl.sync(stream)
    assert acl.elapsed(timed, waitable)[0] == codes.INVALID_HANDLE
    assert acl.elapsed(timed, timed) == (0, 0.0)
    for event in (timed, waitable):
        acl.ok("aclrtDestroyEvent", event)
    assert acl("aclrtDestroyEvent", timed) == codes.INVALID_HANDLE
    assert acl("aclrtCreateEventWithFlag", byref(c_void_p()), 0) == codes.PARAM_INVALID
