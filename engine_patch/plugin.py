"""vLLM's entry points. Called in every process of an engine, possibly several times; inert without etcd endpoints.

Entry points are found through the distribution's metadata, so even a plain `vllm` in this environment imports this
module: it must stay cheap.
"""

from __future__ import annotations

import logging
import os

from coordinator.errors import ConfigError
from engine_patch import core_calls, family, settings, spin, versions
from engine_patch.settings import endpoints

PLATFORMS = {
    "host": "engine_patch.platform.VnpuCpuPlatform",
    "cuda": "engine_patch.cuda_platform.VnpuCudaPlatform",
    "ascend": "engine_patch.npu_platform.VnpuNPUPlatform",
}


def platform() -> str | None:
    """`vllm.platform_plugins`: our platform for the driver of the engine's devices; for the host on vLLM's CPU build
    only.

    vLLM swallows what is raised here, so whatever must be refused is refused in `register` and in the platform. It
    wants one platform plugin at most: beside vllm-ascend's, VLLM_PLUGINS must leave that one out (`vnpu engine` does).
    """
    if not endpoints():
        return None
    name = os.environ.get("VNPU_DRIVER") or "host"
    if name != "host":
        return PLATFORMS.get(name)
    from vllm.platforms import vllm_version_matches_substr

    return PLATFORMS["host"] if vllm_version_matches_substr("cpu") else None


def register() -> None:
    """`vllm.general_plugins`: refuse what cannot work, and tie the engine's processes to one another.

    Raises:
        ConfigError: this vLLM is not supported, or its environment switches our platform off.
    """
    if not endpoints():
        return
    level = os.environ.get("VNPU_LOG_LEVEL", "").upper()
    if level in logging.getLevelNamesMapping():
        logging.getLogger("vllm.vnpu").setLevel(level)
    versions.require_supported(versions.installed(), settings.driver())
    if os.environ.get("VLLM_TARGET_DEVICE") == "cpu":
        raise ConfigError("VLLM_TARGET_DEVICE=cpu makes vLLM ignore platform plugins, vNPU's too", remedy="unset it")
    family.die_with_parent()
    spin.spin_briefly()
    core_calls.install()
