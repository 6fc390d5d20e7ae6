"""Asynchronous steps on the host: what is refused, and what stands in for CUDA's events and streams."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from coordinator.errors import ConfigError
from engine_patch import runner, settings


def config(**other: Any) -> Any:
    """As much of a VllmConfig as is looked at."""
    given = {
        "model_config": SimpleNamespace(runner_type=other.pop("runner_type", "generate")),
        "parallel_config": SimpleNamespace(pipeline_parallel_size=other.pop("pipeline", 1)),
        "speculative_config": None,
        "kv_transfer_config": None,
        "scheduler_config": SimpleNamespace(async_scheduling=False),
    }
    return SimpleNamespace(**{**given, **other})


@pytest.mark.parametrize(
    ("asked", "elsewhere", "on"),
    [(True, True, True), (True, False, True), (None, True, True), (None, False, False), (False, True, False)],
)
def test_it_is_switched_on_again_after_vllms_check_unless_somebody_said_no(
    asked: bool | None, elsewhere: bool, on: bool
):
    found = config()
    runner.decide(found, asked, elsewhere=elsewhere)
    assert found.scheduler_config.async_scheduling is on


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"speculative_config": object()}, r"speculative decoding \(leave --speculative-config out"),
        ({"pipeline": 2}, r"pipeline parallelism \(give tensor-parallel devices"),
        ({"kv_transfer_config": object()}, r"a KV connector \(`roles`\) \(leave the connector out"),
        ({"runner_type": "pooling"}, "a pooling model"),
    ],
)
def test_what_it_cannot_serve_is_refused_by_name_or_else_served_synchronously(other: dict[str, Any], words: str):
    found = config(**other)
    with pytest.raises(ConfigError, match=words) as refused:
        runner.decide(found, True, elsewhere=True)
    assert "`async_runner: false`" in str(refused.value)
    runner.decide(found, None, elsewhere=True)
    assert found.scheduler_config.async_scheduling is False


def test_a_host_has_done_all_it_was_given():
    cuda = SimpleNamespace()
    runner.stand_in(cuda)
    event, stream = cuda.Event(blocking=True), cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    stream.wait_event(event)
    event.record(stream)
    event.wait(stream)
    event.synchronize()
    assert event.query()
    with torch.cuda.stream(stream):
        assert torch.zeros(1).device == stream.device


def test_the_platform_is_told_by_the_environment():
    asked = {"VNPU_ETCD_ENDPOINTS": "http://a:1"}
    assert settings.required(asked).async_runner is False
    assert settings.required({**asked, "VNPU_ASYNC_RUNNER": "0"}).async_runner is False
    assert settings.required({**asked, "VNPU_ASYNC_RUNNER": "1"}).async_runner is True
    assert settings.required({**asked, "VNPU_ASYNC_RUNNER": "auto"}).async_runner is None
    with pytest.raises(ConfigError, match="VNPU_ASYNC_RUNNER='yes'"):
        settings.required({**asked, "VNPU_ASYNC_RUNNER": "yes"})
