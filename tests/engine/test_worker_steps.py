"""A worker's switch and what it has in hand: steps, and KV that other engines pull."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from coordinator.core.model import Bytes
from engine_patch.flight import Flight
from engine_patch.report import Report
from engine_patch.restoring import MemoryFault
from native.link import DaemonRefused
from native.protocol import Code
from transfer.errors import TransferError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch deprecates what it imports itself
    from engine_patch import worker

pytestmark = pytest.mark.engine


class Output:
    """vLLM's AsyncModelRunnerOutput."""

    def get_output(self) -> str:
        return "tokens"


class Theirs:
    """vLLM's worker, as far as steps go."""

    def execute_model(self, scheduler_output: Any) -> Any:
        return None

    def sample_tokens(self, grammar_output: Any) -> Any:
        return Output()


class Hands:
    """The memory hands of a resident engine without KV."""

    def __init__(self, happened: list[str]) -> None:
        self.resident, self.settled, self.copied_out = True, True, 0
        self.held, self.need = Bytes(), Bytes()
        self.kv = SimpleNamespace(base=0)
        self.back = threading.Event()
        """All bytes that a restore copies are back."""
        self.refusal: Exception | None = None
        self.after_settled: Callable[[], object] = lambda: None
        self._happened = happened

    def live(self, region: Any) -> list[tuple[int, int]]:
        return []

    def offload(self, keep: Any) -> tuple[int, tuple[Any, ...]]:
        if self.refusal is not None:
            raise self.refusal
        self._happened.append("unmapped")
        self.resident = False
        return 0, ()

    def begin(self, *, beside: bool) -> tuple[Any, ...]:
        self._happened.append("mapped")
        self.resident = True
        return ()

    def settle(self) -> tuple[int, tuple[Any, ...]]:
        assert self.back.wait(PATIENCE_S)
        if self.refusal is not None:
            raise self.refusal
        self._happened.append("settled")
        self.after_settled()
        return 0, ()

    def drop(self) -> None:
        self._happened.append("unmapped")
        self.resident = False


class Pulls:
    """Our connector's side of a switch. `quiet`: every reader lets go in time."""

    def __init__(self, happened: list[str]) -> None:
        self.quiet = True
        self.meanwhile: Callable[[], object] = lambda: None
        self._happened = happened

    def sleep(self, timeout_s: float) -> bool:
        self._happened.append(f"sleep {timeout_s:g}")
        return self.quiet

    def wake(self) -> None:
        self.meanwhile()
        self._happened.append("wake")


class Told:
    """The desk, which tells the agent."""

    def __init__(self, happened: list[str]) -> None:
        self.over = threading.Event()
        self.report: Report | None = None
        self.deaf = 0
        """To so many calls."""
        self._happened = happened

    def settled(self, report: Report) -> None:
        if self.deaf:
            self.deaf -= 1
            raise TransferError("the agent does not answer")
        self._happened.append("told")
        self.report = report
        self.over.set()


class Ours(worker.VnpuWorker, Theirs):
    """A loaded worker."""

    def __init__(self) -> None:
        self.rank, self._turn, self._settling, self._waking = 0, 0, 0, threading.Lock()
        self.happened: list[str] = []
        self.hands = self._hands = Hands(self.happened)  # type: ignore[assignment]
        self.pulls = self._pulls = Pulls(self.happened)
        self.told = self._desk = Told(self.happened)  # type: ignore[assignment]
        self._flight, self._gates, self._exchange = Flight(), None, None
        self._sharing = SimpleNamespace(part=lambda: None, ready=lambda: None)  # type: ignore[assignment]
        self._kv_at, self._kv_blocks = 0, frozenset()
        self._books = SimpleNamespace(  # type: ignore[assignment]
            use=lambda blocks: [], forget_all_but=lambda live: None, keep=list
        )

    def offload(self) -> Report:
        return msgspec.json.decode(self.vnpu_offload([]), type=Report)

    def restore(self) -> Report:
        return msgspec.json.decode(self.vnpu_restore(), type=Report)

    def undo(self) -> Report:
        return msgspec.json.decode(self.vnpu_undo(), type=Report)


PATIENCE_S = 30.0
STEP = SimpleNamespace(
    total_num_scheduled_tokens=1, scheduled_new_reqs=[], scheduled_cached_reqs=SimpleNamespace(new_block_ids=[])
)


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Ours:
    monkeypatch.setattr(worker, "DRAIN_S", 0.0)
    monkeypatch.setattr(worker, "PAUSE_S", 0.0)
    monkeypatch.setattr(worker, "scheduled_blocks", lambda scheduler_output: set())
    return Ours()


def test_a_switch_between_forward_pass_and_sampling_unmaps_nothing(ours: Ours):
    assert ours.execute_model(STEP) is None
    assert "between a forward pass and its sampling" in ours.offload().error
    assert ours.hands.resident


def test_a_switch_before_an_output_was_fetched_unmaps_nothing(ours: Ours):
    ours.execute_model(STEP)
    output = ours.sample_tokens(None)
    assert "still in flight" in ours.offload().error
    assert ours.hands.resident
    assert output.get_output() == "tokens"


def test_a_switch_after_all_outputs_were_fetched_goes_through(ours: Ours):
    ours.execute_model(STEP)
    ours.sample_tokens(None).get_output()
    assert ours.offload().error == ""
    assert not ours.hands.resident


def test_without_memory_a_request_may_be_forgotten_and_nothing_computed(ours: Ours):
    assert ours.offload().error == ""
    assert ours.execute_model(SimpleNamespace(total_num_scheduled_tokens=0)) is None
    with pytest.raises(RuntimeError, match="memory is away"):
        ours.execute_model(STEP)
    assert ours.offload().error == ""


def test_readers_of_kv_let_go_before_anything_is_unmapped(ours: Ours):
    assert ours.offload().error == ""
    assert ours.happened == ["sleep 0", "unmapped"]


def test_a_reader_of_kv_that_does_not_let_go_keeps_everything_mapped(ours: Ours):
    ours.pulls.quiet = False
    assert "another engine does not let go of KV blocks" in ours.offload().error
    assert ours.hands.resident
    assert "unmapped" not in ours.happened


def test_steps_in_flight_are_asked_before_readers_of_kv(ours: Ours):
    """Offers end when readers are asked: not for a switch that is refused."""
    ours.execute_model(STEP)
    assert ours.offload().error != ""
    assert ours.happened == []


def test_a_switch_that_the_daemon_refuses_lets_readers_of_kv_in_again(ours: Ours):
    ours.hands.refusal = DaemonRefused(Code.NO_SPACE, "no host memory")
    refused = ours.offload()
    assert (refused.error, refused.denied) == ("", "no_space: no host memory")
    assert ours.happened == ["sleep 0", "wake"]


def test_readers_of_kv_come_in_when_everything_is_back(ours: Ours):
    ours.offload()
    ours.hands.back.set()
    assert ours.restore().error == ""
    assert ours.happened == ["sleep 0", "unmapped", "mapped", "settled", "wake"]


def test_beside_steps_readers_of_kv_come_in_when_everything_is_back(ours: Ours):
    """With gates the call is answered at once; a thread of the worker sees the end."""
    ours._gates = SimpleNamespace(install=lambda: None)  # type: ignore[assignment]
    ours.offload()
    assert ours.restore().pending
    assert ours.happened == ["sleep 0", "unmapped", "mapped"]
    ours.hands.back.set()
    assert ours.told.over.wait(PATIENCE_S)
    assert ours.happened == ["sleep 0", "unmapped", "mapped", "settled", "wake", "told"]


def test_an_agent_that_is_busy_for_a_moment_is_told_again(ours: Ours):
    ours._gates = SimpleNamespace(install=lambda: None)  # type: ignore[assignment]
    ours.told.deaf = 2
    ours.offload()
    ours.restore()
    ours.hands.back.set()
    assert ours.told.over.wait(PATIENCE_S)
    assert (ours.told.report.turn, ours.happened[-2:]) == (1, ["wake", "told"])


@pytest.mark.parametrize(("settled", "woken"), [(True, ["wake"]), (False, [])])
def test_what_a_step_offers_does_not_wait_for_the_thread_that_settles(ours: Ours, settled: bool, woken: list[str]):
    ours._gates = SimpleNamespace(pass_first=lambda settled: None)  # type: ignore[assignment]
    ours.hands.settled = settled
    ours.execute_model(STEP)
    assert ours.happened == woken


@pytest.mark.parametrize("gated", [False, True])
def test_after_a_restore_that_failed_nobody_reads_kv(ours: Ours, gated: bool):
    if gated:
        ours._gates = SimpleNamespace(install=lambda: None)  # type: ignore[assignment]
    ours.offload()
    ours.hands.refusal = MemoryFault("what came back is not what was sealed", remedy="report this")
    ours.hands.back.set()
    answer = ours.restore()
    if gated:
        assert ours.told.over.wait(PATIENCE_S)
        answer = ours.told.report
    assert "not what was sealed" in answer.error
    assert "wake" not in ours.happened


@pytest.mark.parametrize("gated", [False, True])
def test_readers_of_kv_let_go_before_a_restore_is_taken_back(ours: Ours, gated: bool):
    """Another rank was denied its pages, after all of this one's were here."""
    if gated:
        ours._gates = SimpleNamespace(install=lambda: None)  # type: ignore[assignment]
    ours.offload()
    ours.hands.back.set()
    ours.restore()
    assert not gated or ours.told.over.wait(PATIENCE_S)
    ours.happened.clear()
    assert ours.undo().error == ""
    assert ours.happened == ["sleep 0", "unmapped"]


def test_who_does_not_let_go_keeps_a_restore_from_being_taken_back(ours: Ours):
    ours.pulls.quiet = False
    assert "does not let go" in ours.undo().error
    assert ours.happened == ["sleep 0"]


def test_a_restore_that_is_taken_back_as_it_settles_lets_nobody_in(ours: Ours):
    """The thread that settles comes last: what it would let in finds nothing there."""
    ours._gates = SimpleNamespace(install=lambda: None)  # type: ignore[assignment]
    ours.offload()
    ours.hands.after_settled = ours.undo
    ours.restore()
    ours.hands.back.set()
    assert ours.told.over.wait(PATIENCE_S)
    assert ours.happened[3:] == ["settled", "sleep 0", "unmapped", "told"]


def test_a_restore_that_is_taken_back_as_readers_of_kv_come_in_gets_them_out_again(ours: Ours):
    undoing = threading.Thread(target=ours.undo)

    def undo() -> None:
        undoing.start()
        undoing.join(0.1)

    ours._gates = SimpleNamespace(install=lambda: None)  # type: ignore[assignment]
    ours.offload()
    ours.pulls.meanwhile = undo
    ours.restore()
    ours.hands.back.set()
    assert ours.told.over.wait(PATIENCE_S)
    undoing.join(PATIENCE_S)
    assert [one for one in ours.happened[3:] if one != "told"] == ["settled", "wake", "sleep 0", "unmapped"]


def test_an_engine_without_our_connector_has_nobody_to_wait_for(ours: Ours):
    ours._pulls = None
    ours.hands.back.set()
    assert (ours.offload().error, ours.restore().error, ours.undo().error) == ("", "", "")
    assert ours.happened == ["unmapped", "mapped", "settled", "unmapped"]
