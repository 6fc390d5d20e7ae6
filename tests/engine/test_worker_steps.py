"""A worker's switch and the steps it has in hand."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from coordinator.core.model import Bytes
from engine_patch.flight import Flight
from engine_patch.report import Report

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

    def __init__(self) -> None:
        self.resident, self.settled, self.held, self.copied_out = True, True, Bytes(), 0
        self.kv = SimpleNamespace(base=0)

    def live(self, region: Any) -> list[tuple[int, int]]:
        return []

    def offload(self, keep: Any) -> tuple[int, tuple[Any, ...]]:
        self.resident = False
        return 0, ()


class Ours(worker.VnpuWorker, Theirs):
    """A loaded worker."""

    def __init__(self) -> None:
        self.rank = 0
        self.hands = self._hands = Hands()  # type: ignore[assignment]
        self._flight, self._gates, self._exchange, self._pulls = Flight(), None, None, None
        self._sharing = SimpleNamespace(part=lambda: None)  # type: ignore[assignment]
        self._kv_at, self._kv_blocks = 0, frozenset()
        self._books = SimpleNamespace(  # type: ignore[assignment]
            use=lambda blocks: [], forget_all_but=lambda live: None, keep=list
        )

    def offload(self) -> Report:
        return msgspec.json.decode(self.vnpu_offload([]), type=Report)


STEP = SimpleNamespace(
    total_num_scheduled_tokens=1, scheduled_new_reqs=[], scheduled_cached_reqs=SimpleNamespace(new_block_ids=[])
)


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Ours:
    monkeypatch.setattr(worker, "DRAIN_S", 0.0)
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
