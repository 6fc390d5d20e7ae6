"""vLLM's CPU platform with vNPU's worker; in the API server it starts the agent, before anything is loaded."""

from __future__ import annotations

from typing import Any

from vllm.platforms.cpu import CpuPlatform

from engine_patch import runner, settings
from engine_patch.joining import choose_worker, join

WORKER = "engine_patch.cpu_worker.VnpuCPUWorker"


class VnpuCpuPlatform(CpuPlatform):  # type: ignore[misc]  # vLLM is not followed
    """Everything but the worker class, and asynchronous steps where they are asked for, is CpuPlatform's."""

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """Raises as `join` and `runner.switch_on`."""
        choose_worker(vllm_config, WORKER)
        super().check_and_update_config(vllm_config)
        found = settings.read()
        if found is not None and found.async_runner:
            runner.switch_on(vllm_config)
        join(vllm_config, WORKER)
