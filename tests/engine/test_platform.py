"""vLLM's CPU platform with asynchronous steps decided around its own check. No engine."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch deprecates what vLLM imports
    from vllm.platforms.cpu import CpuPlatform

    from engine_patch import platform

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("said", "before", "after"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("auto", None, True),
        ("1", False, True),
        ("0", True, False),
        (None, True, False),
    ],
)
def test_what_was_asked_before_vllms_check_counts_after_it(
    monkeypatch: pytest.MonkeyPatch, said: str | None, before: bool | None, after: bool
):
    """`before`: as vLLM has it from its own flags, which its check then overwrites."""

    def check(cls: type, config: Any) -> None:
        config.scheduler_config.async_scheduling = False

    monkeypatch.setattr(CpuPlatform, "check_and_update_config", classmethod(check))
    monkeypatch.setattr(platform, "choose_worker", lambda config, worker: None)
    monkeypatch.setattr(platform, "join", lambda config, worker: None)
    monkeypatch.setenv("VNPU_ETCD_ENDPOINTS", "http://a:1")
    if said is not None:
        monkeypatch.setenv("VNPU_ASYNC_RUNNER", said)
    else:
        monkeypatch.delenv("VNPU_ASYNC_RUNNER", raising=False)
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(async_scheduling=before),
        model_config=SimpleNamespace(runner_type="generate"),
        parallel_config=SimpleNamespace(pipeline_parallel_size=1),
        speculative_config=None,
        kv_transfer_config=None,
    )
    platform.VnpuCpuPlatform.check_and_update_config(config)
    assert config.scheduler_config.async_scheduling is after
