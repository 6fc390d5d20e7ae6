"""vLLM's CPU worker with the memory hands: the `host` driver."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from engine_patch.bus import Bus
from engine_patch.host_bus import HostBus
from engine_patch.kv_connector import kv_pulls, pulled_blocks
from engine_patch.settings import Birth
from engine_patch.worker import Pulls, VnpuWorker
from native._native import Driver


class VnpuCPUWorker(VnpuWorker, CPUWorker):  # type: ignore[misc]  # vLLM is not followed
    """See `engine_patch.worker`."""

    def vnpu_bus(self, driver: Driver, birth: Birth) -> Bus:
        return HostBus(birth.cpus)

    def vnpu_ordinal(self) -> int:
        """The host is one device, whatever the rank."""
        return 0

    def vnpu_pulls(self) -> Pulls | None:
        return kv_pulls()

    def vnpu_pulled(self, scheduler_output: Any) -> set[int]:
        return pulled_blocks(scheduler_output)
