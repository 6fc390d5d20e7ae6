"""vLLM's GPU worker with the memory hands: the `cuda` driver. Held against vLLM's source by tests; not run on a device
yet."""

from __future__ import annotations

import torch
from vllm.v1.worker.gpu_worker import Worker

from coordinator.core.model import Bytes
from engine_patch.bus import Bus
from engine_patch.device_bus import DeviceBus
from engine_patch.device_pools import TorchPools
from engine_patch.settings import Birth
from engine_patch.worker import VnpuWorker
from native._native import Driver


class VnpuCUDAWorker(VnpuWorker, Worker):  # type: ignore[misc]  # vLLM is not followed
    """See `engine_patch.worker`. Torch and the driver meet in the device's primary context, which both use."""

    def vnpu_bus(self, driver: Driver, birth: Birth) -> Bus:
        pools = TorchPools(torch.cuda.memory, "CUDAPluggableAllocator", torch.cuda.synchronize, self.vnpu_ordinal())
        return DeviceBus(driver, pools, Bytes(weights=birth.weights, kv=birth.kv), max(1, len(birth.cpus) // 2))
