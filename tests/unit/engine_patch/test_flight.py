"""Steps in flight, as a worker counts them."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from engine_patch.flight import Flight, fetches
from engine_patch.restoring import MemoryFault

SOON = 60.0
NOW = 0.0


class Output:
    """vLLM's AsyncModelRunnerOutput: fetched once, by another thread."""

    def __init__(self, answer: object = "tokens") -> None:
        self._answer = answer

    def get_output(self) -> object:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def test_a_synchronous_step_is_over_when_it_returns():
    flight = Flight()
    answer = object()
    assert flight.executed(None) is None
    assert flight.steps == 1
    assert flight.sampled(answer) is answer
    assert flight.steps == 0
    flight.drain(NOW)


def test_a_step_without_sampling_is_over_when_it_returns():
    flight = Flight()
    flight.executed(object())
    flight.drain(NOW)


def test_an_asynchronous_step_is_over_when_its_output_was_fetched():
    flight, output = Flight(), Output()
    flight.executed(None)
    assert flight.sampled(output) is output
    with pytest.raises(MemoryFault, match="1 steps were still in flight"):
        flight.drain(NOW)
    assert output.get_output() == "tokens"
    flight.drain(NOW)


def test_an_output_that_only_its_own_call_holds_is_fetched():
    flight = Flight()
    assert flight.sampled(Output()).get_output() == "tokens"
    flight.drain(NOW)


def test_an_output_stays_one_of_vllms_class():
    output = Flight().sampled(Output())
    assert isinstance(output, Output)
    assert type(output) is type(Flight().sampled(Output())), "one class for all, however many steps"


def test_a_step_lasts_until_its_output_is_whole():
    flight = Flight()

    class Looks(Output):
        def get_output(self) -> object:
            return flight.steps

    assert flight.sampled(Looks()).get_output() == 1, "its copy was still to come"
    assert flight.steps == 0


def test_a_failed_output_ends_its_step_and_still_raises():
    flight, output = Flight(), Output(ValueError("no"))
    flight.sampled(output)
    with pytest.raises(ValueError, match="no"):
        output.get_output()
    flight.drain(NOW)


def test_an_output_that_nobody_asked_for_ends_its_step_with_itself():
    flight = Flight()
    flight.sampled(Output())
    flight.drain(NOW)


def test_an_output_that_nobody_will_fetch_is_not_waited_for():
    """vLLM 0.23 holds a rank's last output until that rank's next call is done: the switch would wait for itself."""
    flight, held = Flight(fetched=False), Output()
    flight.executed(None)
    assert flight.steps == 1
    assert flight.sampled(held) is held
    assert flight.steps == 0
    flight.drain(NOW)


@pytest.mark.parametrize(
    ("stages", "ranks", "contexts", "answering"),
    [(1, 1, 1, 0), (1, 2, 1, 0), (2, 2, 1, 2), (4, 8, 1, 24), (2, 2, 2, 4)],
)
def test_one_rank_answers_and_all_where_kv_is_transferred(stages: int, ranks: int, contexts: int, answering: int):
    world = stages * ranks * contexts
    parallel = SimpleNamespace(world_size=world, tensor_parallel_size=ranks, prefill_context_parallel_size=contexts)
    alone = SimpleNamespace(parallel_config=parallel, kv_transfer_config=None)
    assert [rank for rank in range(world) if fetches(rank, alone)] == [answering]
    connected = SimpleNamespace(parallel_config=parallel, kv_transfer_config=object())
    assert all(fetches(rank, connected) for rank in range(world))


def test_no_switch_between_a_forward_pass_and_its_sampling():
    flight = Flight()
    flight.executed(None)
    with pytest.raises(MemoryFault, match="between a forward pass and its sampling"):
        flight.drain(SOON)


def test_a_drain_waits_for_another_thread():
    flight, output, asked = Flight(), Output(), threading.Event()
    flight.sampled(output)
    fetched: list[object] = []

    def fetch() -> None:
        asked.wait(SOON)
        fetched.append(output.get_output())

    thread = threading.Thread(target=fetch)
    thread.start()
    asked.set()
    flight.drain(SOON)
    thread.join(SOON)
    assert fetched == ["tokens"]


class Clock:
    """Ten seconds go by whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10.0
        return self.now


def test_the_deadline_is_one_for_all_steps():
    flight = Flight(Clock())
    outputs = [Output() for _ in range(4)]
    for output in outputs:
        flight.sampled(output)
    outputs[0].get_output()
    with pytest.raises(MemoryFault, match="3 steps were still in flight 2 s after"):
        flight.drain(2.0)


@given(st.lists(st.sampled_from(["execute", "sample", "fetch", "drop"]), max_size=40), st.booleans())
def test_steps_are_what_was_begun_and_has_not_ended(does: list[str], later: bool):
    """Safety: a drain passes exactly when nothing is in flight. Liveness: once all is fetched, it passes."""
    flight, held, unsampled = Flight(), list[Any](), False
    for what in does:
        if what == "execute":
            unsampled = flight.executed(None) is None
        elif what == "sample":
            unsampled, output = False, Output() if later else object()
            flight.sampled(output)
            if later:
                held.append(output)
                del output
        elif held:
            output = held.pop(0)
            if what == "fetch":
                output.get_output()
            del output
        assert flight.steps == len(held) + unsampled
        if held or unsampled:
            with pytest.raises(MemoryFault):
                flight.drain(NOW)
        else:
            flight.drain(NOW)
    flight.sampled(object())
    for output in held:
        output.get_output()
    flight.drain(NOW)
