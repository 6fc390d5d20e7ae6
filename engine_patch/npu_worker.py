"""vllm-ascend's NPU worker with the memory hands: the `ascend` driver. Held against the sources of vllm-ascend 0.23,
vLLM 0.23 and torch-npu by tests; not run on a device yet."""

from __future__ import annotations

from typing import Any

import torch
from vllm_ascend.worker.worker import NPUWorker

from coordinator.core.model import Bytes
from engine_patch.bus import Bus
from engine_patch.device_bus import DeviceBus
from engine_patch.device_pools import TorchPools
from engine_patch.kv_blocks import KvBlocks
from engine_patch.kv_tensors import books_of, flat
from engine_patch.settings import Birth
from engine_patch.worker import VnpuWorker
from native._native import Driver


class VnpuNPUWorker(VnpuWorker, NPUWorker):  # type: ignore[misc]  # vLLM is not followed
    """See `engine_patch.worker`. Weights may lie in any layout (NZ too): pages move, not tensors."""

    def vnpu_bus(self, driver: Driver, birth: Birth) -> Bus:
        npu = torch.npu
        pools = TorchPools(npu.memory, "NPUPluggableAllocator", npu.synchronize, self.vnpu_ordinal())
        return DeviceBus(driver, pools, Bytes(weights=birth.weights, kv=birth.kv), max(1, len(birth.cpus) // 2))

    def vnpu_kv(self, kv_cache_config: Any, foreign: bool) -> tuple[int, frozenset[int], KvBlocks]:
        """vLLM 0.23 has a tensor for each layer, vllm-ascend one each for K and V: where blocks lie is read off the
        tensors themselves."""
        caches = list(flat(self.model_runner.kv_caches))
        region = self._hands.kv
        found = books_of(caches, kv_cache_config.num_blocks, region.base, region.arena.top, everything=foreign)
        return region.base, frozenset(cache.untyped_storage().data_ptr() for cache in caches), found
