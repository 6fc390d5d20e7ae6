"""vLLM's CPU platform with vNPU's worker; in the API server it starts the agent, before anything is loaded."""

from __future__ import annotations

from typing import Any

from vllm.platforms.cpu import CpuPlatform

from engine_patch import runner, settings
from engine_patch.joining import choose_worker, join

WORKER = "engine_patch.cpu_worker.VnpuCPUWorker"


class VnpuCpuPlatform(CpuPlatform):  # type: ignore[misc]  # vLLM is not followed
    """Everything but the worker class and asynchronous steps is CpuPlatform's."""

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """Raises as `join` and `runner.decide`."""
        choose_worker(vllm_config, WORKER)
        elsewhere = vllm_config.scheduler_config.async_scheduling is not False
        super().check_and_update_config(vllm_config)
        if (found := settings.read()) is not None:
            runner.decide(vllm_config, found.async_runner, elsewhere=elsewhere)
        join(vllm_config, WORKER)
