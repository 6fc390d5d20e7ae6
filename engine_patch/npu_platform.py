"""vllm-ascend's NPU platform with vNPU's worker and a bound on streams. Held against the source of vllm-ascend 0.23 by
tests; not run on a device yet."""

from __future__ import annotations

from typing import Any

from vllm_ascend.platform import NPUPlatform
from vllm_ascend.utils import update_cudagraph_capture_sizes

from engine_patch import settings
from engine_patch.joining import choose_worker, join, on_device
from engine_patch.stream_budget import sizes_within

WORKER = "engine_patch.npu_worker.VnpuNPUWorker"


class VnpuNPUPlatform(NPUPlatform):  # type: ignore[misc]  # vllm-ascend is not followed
    """Everything but the worker class, and how many graphs are captured, is NPUPlatform's."""

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """Raises as `join`."""
        choose_worker(vllm_config, WORKER)
        on_device(vllm_config)
        super().check_and_update_config(vllm_config)
        _spend_streams(vllm_config)
        join(vllm_config, WORKER)


def _spend_streams(config: Any) -> None:
    """Capture no more graphs than the engine's budget of streams has room for (docs/ascend.md)."""
    found, sizes = settings.read(), config.compilation_config.cudagraph_capture_sizes
    if found is None or found.streams is None or config.model_config is None or not sizes:
        return
    layers = config.model_config.get_num_layers(config.parallel_config)
    fewer = sizes_within(found.streams, sizes, layers, ranks=config.parallel_config.tensor_parallel_size)
    if fewer != list(sizes):
        update_cudagraph_capture_sizes(config, fewer)
