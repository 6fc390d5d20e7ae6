"""The simulated libascendcl enforces what CANN's documents say (tests/vendor/ascend/entry.h names the pages).

A driver that passes the conformance suite passes on this; so what this lets through is what the suite cannot see.
"""

from __future__ import annotations

import os
import threading
from ctypes import byref, c_size_t, c_void_p

import pytest

from tests.helpers import acl as codes
from tests.helpers.acl import Acl, Location, Prop
from tests.helpers.memory import readable, write
from tests.helpers.script import Script
from tests.helpers.simulator import CHUNK, Simulator, environment

TIB = 1 << 40
SETUP = """
    from tests.helpers.acl import Acl
    from tests.helpers.simulator import CHUNK, Simulator
    acl = Acl(Simulator("ascend"))
"""


def script(code: str, *args: object) -> Script:
    return Script(SETUP, code, args, environment("ascend"))


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


def test_nothing_goes_before_aclinit_and_each_thread_sets_its_device(acl: Acl) -> None:
    with script("acl.lib.aclFinalize(); tell(acl('aclrtSetDevice', 0))") as other:
        assert other.answer() == codes.UNINITIALIZE
    assert acl("aclInit", None) == codes.REPEAT_INITIALIZE
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(acl("aclrtUnmapMem", 0)))
    thread.start()
    thread.join()
    assert seen == [codes.CONTEXT_NULL]
    assert acl("aclrtSetDevice", 2) == codes.INVALID_DEVICE


def test_a_forked_child_is_refused(acl: Acl) -> None:
    pid = os.fork()
    if not pid:
        os._exit(acl("aclrtSetDevice", 0) == codes.UNINITIALIZE)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_no_card_is_no_device() -> None:
    code = "import os; os.environ['SIMULATED_CARD'] = ''; tell(ctypes.CDLL(sys.argv[1]).aclInit(None))"
    with Script("", code, (Simulator("ascend").path,), environment("ascend")) as other:
        assert other.answer() == 207004


@pytest.mark.parametrize(
    ("size", "alignment", "hint", "flags"),
    [
        (0, 0, 0, 0),
        (CHUNK, CHUNK, 0, 0),
        (CHUNK, 0, 0, 2),
        (CHUNK, 0, 15 * TIB, 0),
        (CHUNK, 0, 24 * TIB, 0),
        (CHUNK, 0, 20 * TIB + 4096, 0),
        (1025 << 20, 0, 20 * TIB + (512 << 20), 0),
    ],
)
def test_an_address_range_is_asked_for_as_the_page_says(
    acl: Acl, size: int, alignment: int, hint: int, flags: int
) -> None:
    assert acl("aclrtReserveMemAddress", byref(c_void_p()), size, alignment, hint, flags) == codes.PARAM_INVALID


def test_an_expected_address_is_given_or_refused(acl: Acl) -> None:
    va = acl.reserve(CHUNK, 20 * TIB)
    assert va == 20 * TIB
    assert acl("aclrtReserveMemAddress", byref(c_void_p()), CHUNK, 0, va, 0) == codes.DRV_INTERNAL_ERROR
    acl.ok("aclrtReleaseMemAddress", va)
    assert acl("aclrtReleaseMemAddress", va) == codes.PARAM_INVALID


def test_the_processor_cannot_touch_device_memory(acl: Acl, base: int, handle: int) -> None:
    assert acl.map(base, handle) == 0
    assert not readable(base)
    acl.unmap(base)


@pytest.mark.parametrize(
    "prop",
    [
        Prop(2, 0, codes.HBM_HUGE, Location(0, 1), 0),
        Prop(0, 1, codes.HBM_HUGE, Location(0, 1), 0),
        Prop(0, 0, codes.DDR_HUGE, Location(0, 1), 0),
        Prop(0, 0, codes.HBM_HUGE, Location(1, 0), 0),
        Prop(0, 0, codes.HBM_HUGE, Location(0, 1), 7),
    ],
)
def test_physical_memory_is_asked_for_as_the_page_says(acl: Acl, prop: Prop) -> None:
    assert acl("aclrtMallocPhysical", byref(c_void_p()), CHUNK, byref(prop), 0) == codes.PARAM_INVALID
    assert acl("aclrtMemGetAllocationGranularity", byref(prop), 0, byref(c_size_t())) == codes.PARAM_INVALID


def test_there_is_no_third_device_and_flags_are_0(acl: Acl) -> None:
    prop = Prop(0, 0, codes.HBM_HUGE, Location(2, 1), 0)
    assert acl("aclrtMallocPhysical", byref(c_void_p()), CHUNK, byref(prop), 0) == codes.INVALID_DEVICE
    prop.location.id = 0
    assert acl("aclrtMallocPhysical", byref(c_void_p()), CHUNK, byref(prop), 1) == codes.PARAM_INVALID


def test_memory_runs_out_and_comes_back(acl: Acl, ascend: Simulator) -> None:
    with ascend.capacity(2 * CHUNK):
        assert acl.free_bytes() == 2 * CHUNK
        first = acl.malloc()
        prop = Prop(0, 0, codes.HBM_HUGE, Location(0, 1), 0)
        asked = ("aclrtMallocPhysical", byref(c_void_p()), 2 * CHUNK, byref(prop), 0)
        assert acl(*asked) == codes.MEMORY_ALLOCATION
        acl.ok("aclrtFreePhysical", first)
        acl.ok("aclrtFreePhysical", acl.malloc(2 * CHUNK))
        assert acl("aclrtFreePhysical", first) == codes.INVALID_HANDLE


def test_a_chunk_is_mapped_whole(acl: Acl, base: int) -> None:
    large = acl.malloc(2 * CHUNK)
    assert acl("aclrtMapMem", base, CHUNK, 0, large, 0) == codes.PARAM_INVALID  # a part
    assert acl("aclrtMapMem", base, CHUNK, CHUNK, large, 0) == codes.PARAM_INVALID  # an offset
    assert acl("aclrtMapMem", base, 2 * CHUNK, 0, large, 1) == codes.PARAM_INVALID
    assert acl.map(base + 4096, large, 2 * CHUNK) == codes.PARAM_INVALID
    assert acl.map(base + 3 * CHUNK, large, 2 * CHUNK) == codes.PARAM_INVALID  # beyond the reservation
    assert acl.map(base, large, 2 * CHUNK) == 0
    assert acl.unmap(base + CHUNK) == codes.PARAM_INVALID
    assert acl.unmap(base) == 0
    assert acl.unmap(base) == codes.PARAM_INVALID
    acl.free(large)


def test_an_address_holds_one_chunk_and_a_mapped_range_is_not_released(acl: Acl, base: int, handle: int) -> None:
    other = acl.malloc()
    assert acl.map(base, handle) == 0
    assert acl.map(base, other) == codes.DRV_INTERNAL_ERROR
    assert acl("aclrtReleaseMemAddress", base) == codes.DRV_INTERNAL_ERROR
    assert (acl.unmap(base), acl.free(other)) == (0, 0)


def test_memory_that_is_freed_while_mapped_stays_until_it_is_unmapped(acl: Acl, base: int) -> None:
    handle = acl.malloc()
    acl.map(base, handle)
    free = acl.free_bytes()
    assert acl.free(handle) == 0
    assert acl.free_bytes() == free
    assert acl.unmap(base) == 0
    assert acl.free_bytes() == free + CHUNK


def test_a_reservation_does_not_mix_two_devices(acl: Acl, base: int, handle: int) -> None:
    other = acl.malloc(device=1)
    assert acl.map(base, handle) == 0
    assert acl.map(base + CHUNK, other) == codes.DRV_INTERNAL_ERROR
    assert (acl.unmap(base), acl.map(base + CHUNK, other), acl.unmap(base + CHUNK), acl.free(other)) == (0, 0, 0, 0)


# Sharing


def test_a_handle_is_exported_once(acl: Acl, handle: int) -> None:
    acl.export(handle)
    code = acl("aclrtMemExportToShareableHandle", handle, 0, 0, byref(c_void_p()))
    assert code == codes.DRV_INTERNAL_ERROR
    assert acl("aclrtMemExportToShareableHandle", handle, 2, 0, byref(c_void_p())) == codes.PARAM_INVALID
    assert acl("aclrtMemExportToShareableHandle", handle, 0, 2, byref(c_void_p())) == codes.PARAM_INVALID


def test_a_number_is_not_imported_where_it_was_exported(acl: Acl, handle: int) -> None:
    assert acl.import_(acl.export(handle, flags=1))[0] == codes.DRV_INTERNAL_ERROR


def test_only_white_listed_pids_import_and_getpid_is_not_such_a_pid(acl: Acl, handle: int) -> None:
    number = acl.export(handle)
    code = """
    number = int(sys.argv[1])
    tell(acl.bare_pid())
    tell(acl.import_(number))
    hear()
    tell(acl.import_(number))
    """
    with script(code, number) as other:
        bare = other.answer()
        assert bare != other.process.pid
        assert other.answer()[0] == codes.NO_PERMISSION
        assert acl.allow(number, other.process.pid, bare) == 0
        other.say("again")
        assert other.answer()[0] == 0
    assert acl.allow(number + 1, bare) == codes.PARAM_INVALID


def test_importers_share_the_pages_and_do_not_mix_or_pass_on(acl: Acl, base: int, handle: int) -> None:
    number = acl.export(handle, flags=1)
    code = """
    number = int(sys.argv[1])
    code, theirs = acl.import_(number)
    base = acl.reserve(2 * CHUNK)
    mapped = acl.map(base, theirs)
    mixed = acl.map(base + CHUNK, acl.malloc())
    again, _ = acl.import_(number)
    out = ctypes.c_uint64()
    passed_on = acl("aclrtMemExportToShareableHandle", theirs, 0, 1, ctypes.byref(out))
    at, stream = acl.host(4096), acl.stream()
    acl.copy(at, base, 4096, 2, stream)
    acl.sync(stream)
    tell([code, mapped, mixed, again, passed_on, ctypes.string_at(at, 5).decode()])
    hear()
    """
    at, stream = acl.host(4096), acl.stream()
    write(at, b"hello")
    acl.map(base, handle)
    assert (acl.copy(base, at, 4096, codes.H2D, stream), acl.sync(stream)) == (0, 0)
    refused = codes.DRV_INTERNAL_ERROR
    free = acl.free_bytes()
    with script(code, number) as other:
        assert other.answer() == [0, 0, refused, refused, refused, "hello"]
        assert acl.free_bytes() == free - CHUNK
        other.kill()
        assert acl.free_bytes() == free  # a killed process gives everything back
    acl.unmap(base)
    acl("aclrtFreeHost", at)
    acl("aclrtDestroyStream", stream)


def test_memory_lives_until_the_last_importer_lets_go(acl: Acl) -> None:
    handle = acl.malloc()
    number = acl.export(handle, flags=1)
    free = acl.free_bytes()
    with script(
        "code, theirs = acl.import_(int(sys.argv[1])); tell(code); hear(); tell(acl.free(theirs)); hear()", number
    ) as other:
        assert other.answer() == 0
        assert acl.free(handle) == 0
        assert acl.free_bytes() == free
        other.say("free it")
        assert other.answer() == 0
        assert acl.free_bytes() == free + CHUNK


# Failures to order


def test_the_nth_call_fails_without_effect(acl: Acl, ascend: Simulator, base: int, handle: int) -> None:
    ascend.fail(2, 507000, "aclrtMapMem")
    assert [acl.map(base, handle), acl.unmap(base), acl.map(base, handle), acl.unmap(base)] == [
        0,
        0,
        507000,
        codes.PARAM_INVALID,
    ]
    calls = ascend.calls()
    ascend.fail(1, 207001)
    assert [acl.map(base, handle), acl.map(base, handle), acl.unmap(base)] == [207001, 0, 0]
    assert ascend.calls() == calls + 3


def test_failures_are_ordered_by_the_environment_too() -> None:
    code = "tell([acl('aclrtUnmapMem', 0), acl('aclrtUnmapMem', 0), acl('aclrtUnmapMem', 0)])"
    with Script(SETUP, code, (), environment("ascend", SIMULATED_FAIL="aclrtUnmapMem:2:507001")) as other:
        assert other.answer() == [codes.PARAM_INVALID, 507001, codes.PARAM_INVALID]


def test_the_last_message_is_of_the_thread_and_told_once(acl: Acl) -> None:
    acl.unmap(0)
    assert b"no mapping starts there" in acl.lib.aclGetRecentErrMsg()
    assert acl.lib.aclGetRecentErrMsg() is None
