"""vLLM's CPU platform with vNPU's worker; in the API server it starts the agent, before anything is loaded."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import torch
from vllm.platforms.cpu import CpuPlatform

from coordinator.errors import ConfigError
from engine_patch import estimate, family, settings, start, versions
from engine_patch.checkpoint import folder
from engine_patch.loader_options import FORMAT, read
from engine_patch.plan import Plan

WORKER = "engine_patch.worker.VnpuCPUWorker"


class VnpuCpuPlatform(CpuPlatform):  # type: ignore[misc]  # vLLM is not followed
    """Everything but the worker class is CpuPlatform's."""

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """vLLM calls this for each VllmConfig that is made, in any process of the engine.

        Raises:
            ConfigError: an option that cannot work together with vNPU, or the engine cannot join.
        """
        parallel = vllm_config.parallel_config
        if parallel.worker_cls == "auto":
            parallel.worker_cls = WORKER
        super().check_and_update_config(vllm_config)
        found = settings.read()
        if found is None or vllm_config.model_config is None or family.is_child():
            return
        _refuse_what_cannot_work(vllm_config, len(found.devices))
        start.launch(found, _plan(vllm_config))


def _refuse_what_cannot_work(config: Any, devices: int) -> None:
    versions.require_supported(versions.installed())
    parallel = config.parallel_config
    cache, env = config.cache_config, os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    adapters = "weights have one sealed master, which adapters and updates would change"
    refusals = (
        (parallel.worker_cls != WORKER, "vNPU brings its own worker class", "leave --worker-cls out"),
        (parallel.world_size != devices, f"{parallel.world_size} ranks, {devices} devices", "correct VNPU_DEVICE"),
        (parallel.data_parallel_size > 1, "--data-parallel-size is over 1", "start one engine for each replica"),
        (parallel._api_process_count > 1, "the agent lives in the API server", "give --api-server-count 1"),
        (
            parallel.distributed_executor_backend not in ("mp", None),
            "workers must be local processes",
            "leave --distributed-executor-backend out",
        ),
        (env != "1", "the engine must be in processes of its own", "unset VLLM_ENABLE_V1_MULTIPROCESSING"),
        (config.lora_config is not None, adapters, "leave --enable-lora out"),
        (config.weight_transfer_config is not None, adapters, "leave --weight-transfer-config out"),
        (not cache.kv_cache_memory_bytes, "the KV cache's size is not given", "give --kv-cache-memory-bytes"),
    )
    for wrong, what, remedy in refusals:
        if wrong:
            raise ConfigError(what, remedy=remedy)
    if config.load_config.load_format == FORMAT:
        read(config.load_config.model_loader_extra_config or {})


def _plan(config: Any) -> Plan:
    model = config.model_config
    names = model.served_model_name
    first, *others = [names] if isinstance(names, str) else list(names)
    return Plan(
        model=first,
        aliases=tuple(others),
        url=_url_from(sys.argv[1:]),
        pid=os.getpid(),
        boot_id=family.boot_id(),
        weights=estimate.weights(folder(model), torch.empty(0, dtype=model.dtype).element_size()),
        kv=config.cache_config.kv_cache_memory_bytes,
        versions={"vllm": versions.installed() or "", "torch": str(torch.__version__), "vnpu": versions.own()},
    )


def _url_from(arguments: list[str]) -> str:
    """The server's URL until it is up and can be asked: vLLM's configuration does not hold it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int, default=8000)
    known, _ = parser.parse_known_args(arguments)
    return start.server_url(known.host, known.port)
