"""Each call to the vendor's library fails once, in every operation: afterwards all is as before, and the operation
works when it is tried again. On the simulators, since no device fails to order."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from native._native import Driver, DriverError, open_driver
from tests.helpers.drivers import HINT, REAL, SIMULATED, DriverCase
from tests.helpers.memory import buffer
from tests.helpers.peer import let_go
from tests.helpers.simulator import Simulator
from tests.helpers.window import Window

CODES = {"ascend": 507899, "cuda": 999}
FORGIVEN = {"ascend": {"aclrtGetDevice", "aclrtUnmapMem"}, "cuda": {"cuCtxPopCurrent_v2", "cuMemUnmap"}}
"""Calls around the work, whose failure it survives; what was mapped for zeroing is unmapped at a second try."""
NAMES = {"ascend": "ACL_ERROR_RT_DRV_INTERNAL_ERROR", "cuda": "CUDA_ERROR_UNKNOWN"}


@pytest.fixture(params=() if REAL else SIMULATED, ids=lambda case: case.id)
def case(request: pytest.FixtureRequest) -> DriverCase:
    kind: DriverCase = request.param
    return kind


@pytest.fixture
def simulator(case: DriverCase) -> Simulator:
    opened = case.simulator()
    assert opened is not None
    return opened


@dataclass
class Stage:
    """A driver in the middle of its life: chunks mapped and not, exported and not, a stream with an event on it."""

    driver: Driver
    chunk: int = 0
    base: int = 0
    handles: list[int] = field(default_factory=list)
    stream: int = 0
    event: int = 0
    pinned: int = 0
    undo: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        driver = self.driver
        self.chunk = driver.granularity
        self.base = driver.reserve(8 * self.chunk)
        self.handles = [driver.create(self.chunk) for _ in range(5)]
        driver.map_many([(self.base + i * self.chunk, self.handles[i]) for i in range(3)])
        self.stream, self.event = driver.create_stream(), driver.create_event()
        self.pinned = driver.pin(self.chunk)
        driver.record(self.event, self.stream)
        driver.wait_stream(self.stream, 60)

    def address(self, index: int) -> int:
        return self.base + index * self.chunk

    def end(self) -> None:
        driver = self.driver
        driver.unmap_many([self.address(i) for i in range(3)])
        for handle in self.handles:
            driver.destroy(handle)
        driver.release(self.base)
        driver.destroy_event(self.event)
        driver.destroy_stream(self.stream)
        driver.unpin(self.pinned)


def export(stage: Stage) -> Callable[[], None]:
    """Of a chunk of its own, since a handle is exported once."""
    handle = stage.driver.create(stage.chunk)
    try:
        shareable = stage.driver.export_handle(handle)
    except DriverError:
        stage.driver.destroy(handle)
        raise

    def undo() -> None:
        let_go(stage.driver, shareable)
        stage.driver.destroy(handle)

    return undo


def register(stage: Stage) -> Callable[[], None]:
    memory = buffer(4096)
    at = memory.__enter__()
    try:
        stage.driver.register_host(at, 4096)
    except DriverError:
        memory.__exit__(None, None, None)
        raise

    def undo() -> None:
        stage.driver.unregister_host(at)
        memory.__exit__(None, None, None)

    return undo


def map_two(stage: Stage) -> Callable[[], None]:
    vas = [stage.address(4), stage.address(6)]
    stage.driver.map_many(list(zip(vas, stage.handles[3:], strict=True)))
    return lambda: stage.driver.unmap_many(vas)


def map_read_only(stage: Stage) -> Callable[[], None]:
    stage.driver.map(stage.address(5), stage.handles[3], writable=False)
    return lambda: stage.driver.unmap(stage.address(5))


def unmap_all(stage: Stage) -> Callable[[], None]:
    pairs = [(stage.address(i), stage.handles[i]) for i in range(3)]
    stage.driver.unmap_many([va for va, _ in reversed(pairs)])
    return lambda: stage.driver.map_many(pairs)


def reserve(hint: int) -> Callable[[Stage], Callable[[], None]]:
    def run(stage: Stage) -> Callable[[], None]:
        va = stage.driver.reserve(stage.chunk, hint)
        return lambda: stage.driver.release(va)

    return run


def create(stage: Stage) -> Callable[[], None]:
    handle = stage.driver.create(2 * stage.chunk)
    return lambda: stage.driver.destroy(handle)


def destroy(stage: Stage) -> Callable[[], None]:
    stage.driver.destroy(stage.handles[4])
    return lambda: stage.handles.__setitem__(4, stage.driver.create(stage.chunk))


def wipe(stage: Stage) -> Callable[[], None]:
    stage.driver.wipe(stage.handles)
    return lambda: None


def copy(stage: Stage) -> Callable[[], None]:
    stage.driver.copy_async(stage.stream, [(stage.base, stage.pinned, 64)], "h2d")
    assert stage.driver.wait_stream(stage.stream, 60)
    return lambda: None


def events(stage: Stage) -> Callable[[], None]:
    stage.driver.record(stage.event, stage.stream)
    stage.driver.stream_wait(stage.stream, stage.event)
    assert stage.driver.wait_event(stage.event, 60)
    assert stage.driver.event_done(stage.event)
    stage.driver.elapsed(stage.event, stage.event)
    return lambda: None


def pin(stage: Stage) -> Callable[[], None]:
    at = stage.driver.pin(4096)
    return lambda: stage.driver.unpin(at)


def unpin(stage: Stage) -> Callable[[], None]:
    stage.driver.unpin(stage.pinned)
    return lambda: setattr(stage, "pinned", stage.driver.pin(stage.chunk))


def make_stream(stage: Stage) -> Callable[[], None]:
    stream = stage.driver.create_stream()
    return lambda: stage.driver.destroy_stream(stream)


def destroy_stream(stage: Stage) -> Callable[[], None]:
    stage.driver.destroy_stream(stage.stream)
    return lambda: setattr(stage, "stream", stage.driver.create_stream())


def make_event(stage: Stage) -> Callable[[], None]:
    event = stage.driver.create_event()
    return lambda: stage.driver.destroy_event(event)


def destroy_event(stage: Stage) -> Callable[[], None]:
    stage.driver.destroy_event(stage.event)

    def undo() -> None:
        stage.event = stage.driver.create_event()
        stage.driver.record(stage.event, stage.stream)

    return undo


def ask(stage: Stage) -> Callable[[], None]:
    stage.driver.free_bytes()
    stage.driver.share_id()
    return lambda: None


def tried(
    operation: Callable[[Stage], Callable[[], None]], stage: Stage
) -> tuple[DriverError | None, Callable[[], None]]:
    """The error, or how to undo it."""
    try:
        return None, operation(stage)
    except DriverError as error:
        return error, lambda: None


OPERATIONS = (
    reserve(0), reserve(HINT), create, destroy, wipe, export, map_two, map_read_only, unmap_all, copy, events, pin,
    unpin, register, make_stream, destroy_stream, make_event, destroy_event, ask,
)  # fmt: skip
NAMED = [
    "reserve", "reserve_at", "create", "destroy", "wipe", "export", "map_many", "map_read_only", "unmap_many", "copy",
    "events", "pin", "unpin", "register", "create_stream", "destroy_stream", "create_event", "destroy_event", "ask",
]  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMED)
def test_a_failure_at_every_call_leaves_all_as_it_was(
    case: DriverCase,
    driver: Driver,
    simulator: Simulator,
    facts: Callable[[], dict[str, object]],
    operation: Callable[[Stage], Callable[[], None]],
) -> None:
    stage = Stage(driver)
    calls = simulator.calls()
    undo = operation(stage)
    total = simulator.calls() - calls
    undo()
    before = facts()
    assert total > 0
    failed = 0
    for nth in range(1, total + 1):
        simulator.fail(nth, CODES[case.name])
        error, undo = tried(operation, stage)
        call = simulator.failed()
        simulator.forgive()
        if error is not None:
            failed += 1
            assert (error.code, error.name) == (CODES[case.name], NAMES[case.name])
            assert error.call
            assert error.remedy in str(error)
        else:  # it may not have come to so many calls: waiting polls
            assert call in FORGIVEN[case.name] | {""}
            undo()
        assert facts() == before, f"the failure of call {nth} of {total} left something: {error}"
        undo = operation(stage)  # what failed can be done
        undo()
        assert facts() == before
    assert failed > 0
    stage.end()


def test_a_failed_release_and_import_leave_all_as_it_was(
    case: DriverCase, driver: Driver, simulator: Simulator, chunk: int, refused: Callable[..., DriverError]
) -> None:
    va = driver.reserve(chunk)
    simulator.fail(1, CODES[case.name], {"ascend": "aclrtReleaseMemAddress", "cuda": "cuMemAddressFree"}[case.name])
    assert refused("release", va).call == "release"
    driver.release(va)
    call = {"ascend": "aclrtMemImportFromShareableHandle", "cuda": "cuMemImportFromShareableHandle"}[case.name]
    simulator.fail(1, CODES[case.name], call)
    assert refused("import_handle", 12345, chunk).call == "import_handle"


def test_a_roll_back_that_fails_too_keeps_book_of_what_is(
    case: DriverCase, driver: Driver, simulator: Simulator, base: int, chunk: int, handles: list[int]
) -> None:
    """Mapping fails and so does taking away what was mapped: the book says that it is mapped, because it is."""
    mapped, unmapped = {"ascend": ("aclrtMapMem", "aclrtUnmapMem"), "cuda": ("cuMemMap", "cuMemUnmap")}[case.name]
    simulator.fail(2, CODES[case.name], mapped)
    simulator.fail_also(1, CODES[case.name], unmapped)
    with pytest.raises(DriverError):
        driver.map_many([(base, handles[0]), (base + chunk, handles[1])])
    assert driver.stats().mapped_bytes == simulator.books()["process"]["mapped_bytes"] == chunk
    driver.unmap(base)


def test_a_vendor_s_error_is_told_with_call_code_name_and_remedy(
    case: DriverCase, driver: Driver, simulator: Simulator, chunk: int, refused: Callable[..., DriverError]
) -> None:
    call, code, name = {
        "ascend": ("aclrtMallocPhysical", 207001, "ACL_ERROR_RT_MEMORY_ALLOCATION"),
        "cuda": ("cuMemCreate", 2, "CUDA_ERROR_OUT_OF_MEMORY"),
    }[case.name]
    simulator.fail(1, code, call)
    error = refused("create", chunk)
    assert (error.call, error.code, error.name) == ("create", code, name)
    assert call in str(error)
    assert str(code) in str(error)
    simulator.fail(1, 424242, call)
    assert refused("create", chunk).code == 424242  # a number that nobody knows


def test_what_could_not_be_created_is_not_charged(case: DriverCase, simulator: Simulator, chunk: int) -> None:
    """The room that a create took is given back when it fails, whichever of its calls did."""
    limited = case.open(limit=chunk)
    calls = simulator.calls()
    limited.destroy(limited.create(chunk))
    for nth in range(1, simulator.calls() - calls + 1):
        simulator.fail(nth, CODES[case.name])
        handle = 0
        with contextlib.suppress(DriverError):
            handle = limited.create(chunk)
        simulator.forgive()
        limited.destroy(handle or limited.create(chunk))
        assert limited.free_bytes() == chunk


def test_streams_run_out_with_the_vendor_s_error(
    driver: Driver, case: DriverCase, simulator: Simulator, refused: Callable[..., DriverError]
) -> None:
    call, code = {"ascend": ("aclrtCreateStream", 207008), "cuda": ("cuStreamCreate", 2)}[case.name]
    simulator.fail(1, code, call)
    assert refused("create_stream").code == code


@pytest.mark.parametrize("broken", ["/nowhere/lib.so", "libnowhere.so.9"])
def test_a_library_that_is_not_there_is_told_with_a_remedy(case: DriverCase, broken: str) -> None:
    with pytest.raises(DriverError) as raised:
        open_driver(case.name, 0, 0, "auto", broken)
    assert raised.value.call == "open_driver"
    assert raised.value.remedy


def test_another_device_of_the_card_and_one_that_is_not_there(case: DriverCase, simulator: Simulator) -> None:
    second = open_driver(case.name, 1, 0, "auto", str(simulator.path))
    handle = second.create(second.granularity)
    assert simulator.books()["used"] == [0, second.granularity]
    second.destroy(handle)
    with pytest.raises(DriverError) as raised:
        open_driver(case.name, 7, 0, "auto", str(simulator.path)).create(second.granularity)
    assert raised.value.remedy


def test_a_copy_whose_pages_went_breaks_no_other_stream(
    case: DriverCase, driver: Driver, simulator: Simulator, facts: Callable[[], dict[str, object]]
) -> None:
    """Unmapping does not wait: who unmaps too early is told by the stream, which goes with its driver."""
    before = facts()
    other = case.open()
    window = Window(other, 4096)
    chunk = other.granularity
    handle, base = other.create(chunk), other.reserve(chunk)
    other.map(base, handle)
    broken = other.create_stream()
    with simulator.held():
        other.copy_async(broken, [(base, window.at, 4096)], "h2d")
        other.unmap(base)
    for _ in range(2):
        with pytest.raises(DriverError) as raised:
            other.wait_stream(broken, 60)
        assert raised.value.call == "wait_stream"
    with pytest.raises(DriverError):
        other.destroy_stream(broken)
    other.map(base, handle)
    window.write(base, b"goes on")
    assert window.read(base, 7) == b"goes on"
    other.unmap(base)
    other.destroy(handle)
    other.release(base)
    window.close()
    del other, window
    gc.collect()
    assert facts() == before
