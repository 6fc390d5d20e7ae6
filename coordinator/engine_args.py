"""vLLM's own arguments as a configuration has them: `max-model-len`, `--max-model-len` and `max_model_len` are one."""

from __future__ import annotations

from collections.abc import Mapping

NETLOADER = "vnpu_netloader"
"""The `load_format` of ours (engine_patch/loader.py)."""


def plain(key: str) -> str:
    """As vLLM's configuration calls it."""
    return key.lstrip("-").replace("-", "_")


def plainly(given: Mapping[str, object]) -> dict[str, object]:
    return {plain(key): value for key, value in given.items()}
