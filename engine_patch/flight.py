"""Steps of one worker that have begun and not ended: while there is one, its memory must stay where it is.

vLLM's own pause waits for EngineCore's batch queue (docs/async-runner.md). This counts what the worker itself has in
hand, so that a switch which came too early, for whatever reason, is refused instead of unmapping under a forward pass.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any, cast

from engine_patch.restoring import MemoryFault

REMEDY = "report this with the engine's log; `async_runner: false` goes round it"


def fetches(rank: int, config: Any) -> bool:
    """Whether vLLM fetches what `rank` returns of a step (`MultiprocExecutor._get_output_rank` and `collective_rpc`,
    vllm/v1/executor/multiproc_executor.py): of the first rank of the last pipeline stage, or of all where a KV
    connector has something to say. `config`: vLLM's VllmConfig."""
    parallel = config.parallel_config
    last_stage = parallel.tensor_parallel_size * parallel.prefill_context_parallel_size
    return config.kv_transfer_config is not None or rank == parallel.world_size - last_stage


class Flight:
    """Called from the worker's main thread alone; outputs land from any thread, through a queue that a finalizer may
    use too (queue.SimpleQueue)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, fetched: bool = True) -> None:
        """`clock`: seconds, never back. `fetched`: vLLM fetches what this worker returns."""
        self._clock = clock
        self._fetched = fetched
        self._unsampled = False
        self._number = 0
        self._open: set[int] = set()
        self._landed: SimpleQueue[int] = SimpleQueue()

    @property
    def steps(self) -> int:
        """Steps that are in flight."""
        self._collect()
        return len(self._open) + self._unsampled

    def executed(self, output: Any) -> Any:
        """What `execute_model` returned: None where `sample_tokens` is to come (vllm/v1/worker/gpu_worker.py, 0.32.0).
        Returns it."""
        self._unsampled = output is None
        return self._watch(output)

    def sampled(self, output: Any) -> Any:
        """What `sample_tokens` returned. Returns it."""
        self._unsampled = False
        return self._watch(output)

    def drain(self, timeout_s: float) -> None:
        """Wait until all steps have ended.

        Raises:
            MemoryFault: a step waits for its sampling, which this thread itself would have to do, or its output was not
                fetched in time.
        """
        if self._unsampled:
            raise MemoryFault("a switch was ordered between a forward pass and its sampling", remedy=REMEDY)
        deadline = self._clock() + timeout_s
        self._collect()
        while self._open:
            try:
                self._open.discard(self._landed.get(timeout=max(0.0, deadline - self._clock())))
            except Empty:
                raise MemoryFault(
                    f"{len(self._open)} steps were still in flight {timeout_s:g} s after the engine was paused",
                    remedy=REMEDY,
                ) from None

    def _watch(self, output: Any) -> Any:
        """An output that is fetched later (`AsyncModelRunnerOutput`, vllm/v1/outputs.py) ends its step when it was
        fetched, or when nobody holds it any more. One that nobody will fetch is not waited for: 0.23 holds a rank's
        last output until its next call is done, which may be the switch itself. For the device of such a rank the
        pause waits (`synchronize_device`), or `Bus.quiesce`."""
        self._collect()
        if not self._fetched or not hasattr(output, "get_output"):
            return output
        number = self._number = self._number + 1
        self._open.add(number)
        weakref.finalize(output, self._landed.put, number).atexit = False
        output.vnpu_landing = (self._landed, number)
        output.__class__ = _telling(cast("Any", type(output)))
        return output

    def _collect(self) -> None:
        while True:
            try:
                self._open.discard(self._landed.get_nowait())
            except Empty:
                return


@cache
def _telling(kind: Any) -> Any:
    """Of outputs of class `kind`: says when `get_output` is done, however it ends. A class, because a function on the
    object would have to hold it, and an output that nobody asked for must go at once, with its tensors."""

    def get_output(self: Any) -> Any:
        landed, number = self.vnpu_landing
        try:
            return kind.get_output(self)
        finally:
            landed.put(number)

    return type(kind.__name__, (kind,), {"get_output": get_output})
