"""What is changed of vLLM's configuration before it checks it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engine_patch.joining import on_device


@pytest.mark.parametrize(("chosen", "taken"), [("uni", "mp"), ("mp", "mp"), (None, None), ("ray", "ray")])
def test_one_rank_on_a_device_is_a_process_of_its_own(chosen: str | None, taken: str | None) -> None:
    """vLLM chooses `uni` for one rank (ParallelConfig.__post_init__), where the worker would live in EngineCore."""
    parallel = SimpleNamespace(distributed_executor_backend=chosen)
    on_device(SimpleNamespace(cache_config=SimpleNamespace(gpu_memory_utilization=0.92), parallel_config=parallel))
    assert parallel.distributed_executor_backend == taken
