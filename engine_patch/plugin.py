"""vLLM's entry points. Called in every process of an engine, possibly several times; inert without etcd endpoints.

Entry points are found through the distribution's metadata, so even a plain `vllm` in this environment imports this
module: it must stay cheap.
"""

from __future__ import annotations

import logging
import os

from coordinator.errors import ConfigError
from engine_patch import family, live_blocks, spin, versions
from engine_patch.settings import endpoints


def platform() -> str | None:
    """`vllm.platform_plugins`: our platform on vLLM's CPU build, nothing elsewhere.

    vLLM swallows what is raised here, so whatever must be refused is refused in `register` and in the platform.
    """
    if not endpoints():
        return None
    from vllm.platforms import vllm_version_matches_substr

    return "engine_patch.platform.VnpuCpuPlatform" if vllm_version_matches_substr("cpu") else None


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
    versions.require_supported(versions.installed())
    if os.environ.get("VLLM_TARGET_DEVICE") == "cpu":
        raise ConfigError("VLLM_TARGET_DEVICE=cpu makes vLLM ignore platform plugins, vNPU's too", remedy="unset it")
    family.die_with_parent()
    spin.spin_briefly()
    live_blocks.install()
