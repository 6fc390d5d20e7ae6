"""Asynchronous steps on the host (`async_runner`): vLLM's own path, which its CPU platform switches off.

EngineCore then schedules step N + 1 while the worker computes step N, and the sampled tokens stay where they are and
feed the next step (vllm/v1/core/sched/async_scheduler.py; docs/async-runner.md says what it is worth). A host has no
streams: the worker's own thread computes everything in order, so that whatever vLLM's runner asks of a CUDA event or
stream has always happened already. `stand_in` says so; torch's CPU build has neither.

Verified on vLLM 0.32.0 (vllm/v1/worker/gpu_model_runner.py: `AsyncGPUModelRunnerOutput`, `prepare_inputs_event`).
"""

from __future__ import annotations

from typing import Any

import torch

from coordinator.errors import ConfigError

KEY = "async_runner"


class Past:
    """A CUDA event or stream of a device that has done all it was given."""

    device = torch.device("cpu")

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Takes whatever torch.cuda.Event and torch.cuda.Stream take."""

    def record(self, stream: object = None) -> None: ...

    def synchronize(self) -> None: ...

    def wait(self, stream: object = None) -> None: ...

    def wait_stream(self, stream: object) -> None: ...

    def wait_event(self, event: object) -> None: ...

    def query(self) -> bool:
        return True


def stand_in(cuda: Any = torch.cuda) -> None:
    """In a worker of the host, for as long as it lives. Idempotent."""
    cuda.Event = cuda.Stream = Past
    cuda.current_stream = Past


def decide(config: Any, asked: bool | None, *, elsewhere: bool) -> None:
    """After vLLM's own check, which switched it off (vllm/platforms/cpu.py, 0.32.0), and before EngineCore looks.

    `asked`: on or off; None: on where it serves this engine and vLLM would have it on `elsewhere`, on a platform that
    does not switch it off.

    Raises:
        ConfigError: asynchronous steps were asked for together with what they cannot serve on the host.
    """
    if not (elsewhere if asked is None else asked):
        return
    wrong = _wrong(config)
    if wrong is None:
        config.scheduler_config.async_scheduling = True
    elif asked:
        what, remedy = wrong
        raise ConfigError(f"{KEY}: on the host it does not go with {what}", remedy=f"{remedy}, or `{KEY}: false`")


def _wrong(config: Any) -> tuple[str, str] | None:
    """What of this engine it does not serve, and what to do then."""
    runner = getattr(config.model_config, "runner_type", "generate")
    refusals = (
        (config.speculative_config is not None, "speculative decoding", "leave --speculative-config out"),
        (config.parallel_config.pipeline_parallel_size > 1, "pipeline parallelism", "give tensor-parallel devices"),
        (config.kv_transfer_config is not None, "a KV connector (`roles`)", "leave the connector out"),
        (runner != "generate", f"a {runner} model", "its steps have no token to wait for"),
    )
    return next(((what, remedy) for refused, what, remedy in refusals if refused), None)
