"""vLLM's CPU worker with the memory hands: the `host` driver."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from engine_patch import runner
from engine_patch.bus import Bus
from engine_patch.host_bus import HostBus
from engine_patch.kv_connector import kv_pulls, pulled_blocks
from engine_patch.kv_lending import near
from engine_patch.settings import Birth
from engine_patch.worker import Pulls, VnpuWorker
from native._native import Driver

log = logging.getLogger("vllm.vnpu.worker")


class VnpuCPUWorker(VnpuWorker, CPUWorker):  # type: ignore[misc]  # vLLM is not followed
    """See `engine_patch.worker`."""

    def init_device(self) -> None:
        """The model runner is made in here."""
        if self.vllm_config.scheduler_config.async_scheduling:
            runner.stand_in()
            log.info("steps are asynchronous")
        super().init_device()

    def vnpu_bus(self, driver: Driver, birth: Birth) -> Bus:
        return HostBus(birth.cpus)

    def vnpu_allocating_kv(self) -> AbstractContextManager[None]:
        """Not around all of it: see below."""
        return nullcontext()

    def _maybe_get_memory_pool_context(self, tag: str) -> AbstractContextManager[None]:
        """vLLM's own place for it (vllm/v1/worker/gpu_worker.py, 0.32.0): the KV tensors alone, not the workspaces that
        are made beside them (MLA's takes 8 sequences' worth, whatever the KV cache holds)."""
        if tag == "kv_cache":
            return self._hands.allocating(self._hands.kv)
        pool: AbstractContextManager[None] = super()._maybe_get_memory_pool_context(tag)
        return pool

    def vnpu_ordinal(self) -> int:
        """The host is one device, whatever the rank."""
        return 0

    def vnpu_pulls(self) -> Pulls | None:
        pulls = kv_pulls()
        if pulls is not None:
            pulls.share(near(self._hands))
        return pulls

    def vnpu_pulled(self, scheduler_output: Any) -> set[int]:
        return pulled_blocks(scheduler_output)
