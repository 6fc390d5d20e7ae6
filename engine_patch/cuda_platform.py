"""vLLM's CUDA platform with vNPU's worker. Held against vLLM's source by tests; not run on a device yet."""

from __future__ import annotations

from typing import Any

from vllm.platforms.cuda import CudaPlatform

from engine_patch.joining import choose_worker, join, on_device

WORKER = "engine_patch.cuda_worker.VnpuCUDAWorker"


class VnpuCudaPlatform(CudaPlatform):  # type: ignore[misc]  # vLLM is not followed
    """Everything but the worker class is CudaPlatform's."""

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """Raises as `join`."""
        choose_worker(vllm_config, WORKER)
        on_device(vllm_config)
        super().check_and_update_config(vllm_config)
        join(vllm_config, WORKER)
