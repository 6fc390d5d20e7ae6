"""No switch meets a step in flight: vLLM's own batch queue and pause, our drain behind them, in any order of events.

EngineCore's loop, pause and `step_with_batch_queue` are the installed vLLM's, called on an EngineCore without a model:
scheduler, executor and worker are small models of theirs, deterministic, in one thread. A worker's results come back
when somebody waits for them, or before, as the drawn history has it.
"""

from __future__ import annotations

import queue
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch deprecates what vLLM imports
    from vllm.v1.core.sched.interface import PauseState
    from vllm.v1.engine.core import EngineCore, EngineCoreProc, EngineShutdownState

from engine_patch import core_calls
from engine_patch.flight import Flight

pytestmark = pytest.mark.engine

NOW = 0.0


@pytest.fixture(autouse=True, scope="module")
def not_for_this_process() -> Iterator[None]:
    """How an EngineCore waits would stay for all tests after these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coordinator.store.prompt.all_prompt", lambda: None)
        patch.setattr("engine_patch.spin._rests_until", 0.0)
        yield


class Output:
    """As AsyncModelRunnerOutput."""

    def get_output(self) -> str:
        return "tokens"


class Worker:
    """One rank: runs calls in order; its answers go out in order, asynchronous ones when they are fetched."""

    def __init__(self, later: bool) -> None:
        self.flight = Flight()
        self.away = False
        self._later = later
        self._answers: deque[tuple[Any, Reply]] = deque()

    def execute_model(self, tokens: int) -> Reply:
        """Without tokens there is nothing to sample: vLLM's runner answers at once, and needs no memory."""
        assert not (self.away and tokens), "a step began while the memory was away"
        return self._answer(self.flight.executed(None if tokens else object()))

    def sample_tokens(self) -> Reply:
        assert not self.away, "sampling while the memory is away"
        return self._answer(self.flight.sampled(Output() if self._later else object()))

    def offload(self) -> str:
        """What `VnpuWorker.vnpu_offload` begins with."""
        self.flight.drain(NOW)
        self.away = True
        return "report"

    def progress(self) -> bool:
        """The output thread fetches one answer and sends it. False: there was none."""
        if not self._answers:
            return False
        output, reply = self._answers.popleft()
        reply.set_result(output.get_output() if isinstance(output, Output) else output or "done")
        return True

    def _answer(self, output: Any) -> Reply:
        reply = Reply(self)
        self._answers.append((output, reply))
        return reply


class Reply(Future[Any]):
    """Waiting for it lets the worker go on."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker

    def result(self, timeout: float | None = None) -> Any:
        while not self.done():
            assert self._worker.progress(), "a wait that never ends"
        return super().result(0)


class Executor:
    """vLLM's MultiprocExecutor with one rank: calls are answered in order."""

    def __init__(self, later: bool) -> None:
        self.worker = Worker(later)

    def execute_model(self, scheduler_output: Any, non_block: bool) -> Reply:
        return self.worker.execute_model(scheduler_output.total_num_scheduled_tokens)

    def sample_tokens(self, grammar_output: Any, non_block: bool) -> Reply:
        return self.worker.sample_tokens()

    def collective_rpc(self, method: str, timeout: Any = None, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        while self.worker.progress():
            pass
        return [self.worker.offload()] if method == core_calls.OFFLOAD else ["done"]


class Scheduler:
    """Requests are numbers of tokens still to come; with structured output each waits for the one before
    (AsyncScheduler._update_after_schedule). One that was aborted is told to the workers by the next step, paused or not
    (Scheduler.has_finished_requests)."""

    def __init__(self, structured: bool) -> None:
        self.pause_state = PauseState.UNPAUSED
        self.kv_cache_manager = SimpleNamespace(block_pool=Pool(), evict_blocks=lambda blocks: None)
        self._structured = structured
        self.to_schedule: list[int] = []
        self.to_come: list[int] = []
        self.aborted = False

    def set_pause_state(self, state: PauseState) -> None:
        self.pause_state = state

    def has_requests(self) -> bool:
        return self.aborted or (self.pause_state != PauseState.PAUSED_ALL and any(self.to_come))

    def add(self, tokens: int) -> None:
        self.to_schedule.append(tokens)
        self.to_come.append(tokens)

    def abort(self) -> None:
        if self.to_come:
            self.to_schedule[0] = self.to_come[0] = 0
            self.aborted = True

    def schedule(self, throttle: bool) -> Any:
        self.aborted = False
        paused = self.pause_state == PauseState.PAUSED_ALL
        chosen = [i for i, left in enumerate(self.to_schedule) if left and not paused]
        for i in chosen:
            self.to_schedule[i] -= 1
        waits = self._structured and any(self.to_come[i] - self.to_schedule[i] > 1 for i in chosen)
        return SimpleNamespace(
            chosen=chosen, total_num_scheduled_tokens=len(chosen), pending_structured_output_tokens=waits
        )

    def get_grammar_bitmask(self, scheduler_output: Any) -> None:
        return None

    def update_from_output(self, scheduler_output: Any, output: Any) -> dict[int, Any]:
        for i in scheduler_output.chosen:
            self.to_come[i] -= bool(self.to_come[i])
        return {}

    def make_stats(self) -> None:
        return None


class Pool:
    blocks: tuple[Any, ...] = ()

    @property
    def free_block_queue(self) -> Any:
        return SimpleNamespace(get_all_free_blocks=list)


class Core(EngineCoreProc):  # type: ignore[misc]  # vLLM is not followed
    """An EngineCore process without process, sockets and model."""

    def __init__(self, size: int, structured: bool) -> None:
        self.scheduler = Scheduler(structured)
        self.model_executor = Executor(later=size > 1)
        self.batch_queue_size = size
        self.batch_queue = deque(maxlen=size)
        self.vllm_config = SimpleNamespace(
            observability_config=SimpleNamespace(enable_logging_iteration_details=False), kv_transfer_config=None
        )
        self.input_queue, self.output_queue, self.aborts_queue = queue.Queue(), queue.Queue(), queue.Queue()
        self.step_fn = self.step_with_batch_queue
        self.shutdown_state = EngineShutdownState.RUNNING
        self.is_mm_encoder_only = self.is_pooling_model = self.check_for_draft_tokens = False
        self.engines_running = self.process_input_queue_block = self.log_stats = False
        self.async_scheduling = size > 1
        self._weight_version = ""
        self._idle_state_callbacks = []

    def turn(self) -> None:
        """Once round vLLM's busy loop."""
        self._process_input_queue()
        if self.has_work():
            self._process_engine_step()


class Run:
    """One history: what clients, the agent and time do to the engine."""

    def __init__(self, size: int, structured: bool) -> None:
        self.core = Core(size, structured)
        self.worker: Worker = self.core.model_executor.worker
        self.switches = 0

    def do(self, what: str) -> None:
        getattr(self, what)()

    def ask(self) -> None:
        self.core.scheduler.add(3)

    def step(self) -> None:
        self.core.turn()

    def answer(self) -> None:
        self.worker.progress()

    def abort(self) -> None:
        self.core.scheduler.abort()

    def switch(self) -> None:
        """As the agent does it: drain, and offload without waiting for that; later restore and resume. Requests may
        come meanwhile."""
        drained = core_calls.drain(self.core)
        offloaded = core_calls.offload(self.core, None)
        turns = 0
        while isinstance(offloaded, Future) and not offloaded.done():
            assert drained is not None
            assert not drained.done()
            assert not self.worker.away, "memory left before the drain was done"
            self.core.turn()
            turns += 1
            assert turns <= self.core.batch_queue_size + 1, "a pause that never ends"
        assert self.worker.flight.steps == 0, "the pause was over with a step in flight"
        assert self.worker.away
        assert (offloaded.result(0) if isinstance(offloaded, Future) else offloaded) == ["report"]
        self.switches += 1
        self.ask()
        self.core.turn()
        self.abort()  # of one that is frozen
        self.core.turn()
        assert not self.core.scheduler.aborted, "what the workers were to forget was not told"
        self.worker.away = False
        self.core.resume_scheduler()

    def finish(self) -> None:
        for _ in range(1000):
            if not self.core.has_work():
                return
            self.core.turn()
        raise AssertionError("requests are left")


HISTORIES = st.lists(st.sampled_from(["ask", "step", "step", "answer", "abort", "switch"]), max_size=40)


@given(history=HISTORIES, size=st.sampled_from([2, 3]), structured=st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_switch_meets_a_step_in_flight_and_all_requests_end(history: list[str], size: int, structured: bool) -> None:
    run = Run(size, structured)
    for what in history:
        run.do(what)
    run.finish()
    assert not any(run.core.scheduler.to_come)
    assert run.switches == history.count("switch")


def test_the_batch_queue_is_used() -> None:
    """The model above would prove nothing if there were never more than one step."""
    run = Run(2, structured=False)
    run.ask()
    run.step()
    assert run.worker.flight.steps == 1
    run.step()
    assert len(run.core.batch_queue) == 1, "one was taken back, one more was launched before it"
    run.finish()


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_a_switch_without_a_drain_is_refused_before_any_worker_is_asked(paused: bool) -> None:
    run = Run(2, structured=False)
    run.ask()
    run.step()
    if paused:
        run.core.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    with pytest.raises(RuntimeError, match="a switch was ordered with 1 steps in flight"):
        core_calls.offload(run.core, None)
    assert not run.worker.away


def test_an_engine_that_is_not_paused_is_refused() -> None:
    with pytest.raises(RuntimeError, match="scheduler UNPAUSED"):
        core_calls.offload(Run(2, structured=False).core, None)


def test_the_engine_core_has_our_calls_by_the_names_the_agent_calls() -> None:
    core_calls.install()
    assert getattr(EngineCore, core_calls.DRAIN) is core_calls.drain
    assert getattr(EngineCore, core_calls.OFFLOAD) is core_calls.offload
    assert getattr(EngineCore, core_calls.RESTORE) is core_calls.restore
