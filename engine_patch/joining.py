"""How an engine joins: called by the platforms from vLLM's configuration, before anything is loaded."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import torch

from coordinator.errors import ConfigError
from engine_patch import estimate, family, settings, start, versions
from engine_patch.checkpoint import folder
from engine_patch.loader_options import FORMAT, read
from engine_patch.plan import Plan
from engine_patch.settings import Settings
from engine_patch.sharded_linear import options

UTILISATION = 0.01
"""Share of a device that vLLM wants free at its start: all it has is ours, and the KV cache's size is given."""
EXPANDABLE = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_NPU_ALLOC_CONF")


def choose_worker(vllm_config: Any, worker: str) -> None:
    """Before vLLM's own check, which would fill in its own."""
    if vllm_config.parallel_config.worker_cls == "auto":
        vllm_config.parallel_config.worker_cls = worker


def on_device(vllm_config: Any) -> None:
    """Before vLLM's own check: the daemon holds the device's free memory already, so vLLM must not look for it, and one
    rank gets a process of its own too, as several have."""
    vllm_config.cache_config.gpu_memory_utilization = UTILISATION
    if vllm_config.parallel_config.distributed_executor_backend == "uni":
        vllm_config.parallel_config.distributed_executor_backend = "mp"


def join(vllm_config: Any, worker: str) -> None:
    """After vLLM's own check, for each VllmConfig that is made, in any process of the engine: start the agent, once, in
    the API server.

    Raises:
        ConfigError: an option that cannot work together with vNPU, or the engine cannot join.
    """
    found = settings.read()
    if found is None or vllm_config.model_config is None or family.is_child():
        return
    _refuse_what_cannot_work(vllm_config, found, worker)
    start.launch(found, _plan(vllm_config))


def _refuse_what_cannot_work(config: Any, found: Settings, worker: str) -> None:
    versions.require_supported(versions.installed(), found.driver)
    devices = len(found.devices)
    parallel = config.parallel_config
    cache, env = config.cache_config, os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    adapters = "weights have one sealed master, which adapters and updates would change"
    refusals = (
        (parallel.worker_cls != worker, "vNPU brings its own worker class", "leave --worker-cls out"),
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
        (_expandable(), "segments of torch that expand do not go into memory of ours", "take expandable_segments out"),
        (not cache.kv_cache_memory_bytes, "the KV cache's size is not given", "give --kv-cache-memory-bytes"),
    )
    for wrong, what, remedy in refusals:
        if wrong:
            raise ConfigError(what, remedy=remedy)
    if found.driver != "host":
        _refuse_what_needs_addresses(config)
    if config.load_config.load_format == FORMAT:
        read(config.load_config.model_loader_extra_config or {})
    sharing = options.read(config.additional_config)
    if sharing is not None:
        _refuse_what_cannot_be_shared(config, found.driver, sharing)


def _refuse_what_cannot_be_shared(config: Any, driver: str, sharing: options.Options) -> None:
    compiled = "broadcast layers need eager mode: in a compiled graph nobody waits for them"
    refusals = (
        (driver != "host", "layers are shared on the host driver only, so far", "leave sharded_linear out"),
        (config.parallel_config.tensor_parallel_size < 2, "there is one rank", "give the model several devices"),
        (config.load_config.load_format == FORMAT, "shared layers are not streamed", "give load_from: disk"),
        (sharing.carrier == "broadcast" and not config.model_config.enforce_eager, compiled, "give --enforce-eager"),
    )
    for wrong, what, remedy in refusals:
        if wrong:
            raise ConfigError(f"{options.KEY}: {what}", remedy=remedy)


def _refuse_what_needs_addresses(config: Any) -> None:
    """What reads and writes pages as memory of its own process, which a device's are not."""
    if config.load_config.load_format == FORMAT:
        raise ConfigError("weights are streamed on the host driver only", remedy=f"leave --load-format {FORMAT} out")
    transfer = config.kv_transfer_config
    if transfer is not None and transfer.kv_connector == "VnpuConnector":
        raise ConfigError("VnpuConnector pulls KV on the host driver only", remedy="take vLLM's own connector")


def _expandable() -> bool:
    return any("expandable_segments:true" in os.environ.get(name, "").lower() for name in EXPANDABLE)


def _plan(config: Any) -> Plan:
    model = config.model_config
    sharing = options.read(config.additional_config)
    names = model.served_model_name
    first, *others = [names] if isinstance(names, str) else list(names)
    return Plan(
        model=first,
        aliases=tuple(others),
        url=_url_from(sys.argv[1:]),
        pid=os.getpid(),
        boot_id=family.boot_id(),
        weights=estimate.weights(
            folder(model), torch.empty(0, dtype=model.dtype).element_size(), sharing.layers if sharing else ()
        ),
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
