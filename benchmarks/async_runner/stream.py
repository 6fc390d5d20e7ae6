"""A runner whose steps are computed by a thread of the worker, in order: as little as a stream can be.

vLLM loads it as a general plugin from a distribution that `plugin.plugged` writes: nothing of it is in the product. The
worker's main thread gives a step to the thread and takes the next message; outputs are waited for where vLLM waits for
asynchronous ones. A step that may not be deferred does not exist here: all of a step runs in the thread, after the one
before, so that no buffer is written while it is read.
"""

from __future__ import annotations

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Stream:
    """One thread, in order."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="bench-stream")
        self.forward: Future[Any] | None = None

    def submit(self, work: Any, *args: Any) -> Future[Any]:
        return self._pool.submit(_without_gradients, work, *args)


def _without_gradients(work: Any, *args: Any) -> Any:
    """inference_mode belongs to a thread."""
    import torch

    with torch.inference_mode():
        return work(*args)


def install() -> None:
    """In a worker process; idempotent."""
    from vllm.v1.outputs import AsyncModelRunnerOutput
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if hasattr(CPUModelRunner, "bench_stream"):
        return

    class Deferred(AsyncModelRunnerOutput):  # type: ignore[misc]
        """The output of a step that the thread may not have begun yet."""

        def __init__(self, sampled: Future[Any]) -> None:
            self._sampled = sampled

        def get_output(self) -> Any:
            output = self._sampled.result()
            return output.get_output() if isinstance(output, AsyncModelRunnerOutput) else output

    execute, sample = CPUModelRunner.execute_model, CPUModelRunner.sample_tokens

    @functools.wraps(execute)
    def execute_model(self: Any, scheduler_output: Any, *rest: Any) -> Any:
        done = _stream(self).submit(execute, self, scheduler_output, *rest)
        if not scheduler_output.total_num_scheduled_tokens:
            return done.result()
        _stream(self).forward = done
        return None

    @functools.wraps(sample)
    def sample_tokens(self: Any, grammar_output: Any) -> Any:
        before = _stream(self).forward

        def both() -> Any:
            if before is not None:
                before.result()
            return sample(self, grammar_output)

        return Deferred(_stream(self).submit(both))

    CPUModelRunner.bench_stream = None
    CPUModelRunner.execute_model, CPUModelRunner.sample_tokens = execute_model, sample_tokens


def _stream(runner: Any) -> Stream:
    if runner.bench_stream is None:
        runner.bench_stream = Stream()
    found: Stream = runner.bench_stream
    return found
