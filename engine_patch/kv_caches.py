"""vLLM's KV caches in the terms of the transfer: layouts, addresses, and what two engines must agree on.

What was read: vllm/v1/attention/backends/cpu_attn.py and vllm/v1/kv_cache_interface.py, 0.32.0. On CPU a layer is
`[blocks, heads, tokens, 2 * head size]`, and within a block and head the bytes are packed for the processor's vector
instructions: heads can be sliced, tokens cannot.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Any

import torch

from coordinator.errors import ConfigError
from engine_patch.checkpoint import folder
from engine_patch.kv_bookings import Shape
from engine_patch.revision import revision
from transfer.kv.layout import cpu_packed
from transfer.kv.reader import Span
from transfer.kv.supply import Group

AXES = 4


def groups(config: Any, caches: Mapping[str, torch.Tensor]) -> tuple[Group, ...]:
    """The groups of `KVCacheConfig` as this rank holds them; `caches`: a tensor for each layer.

    Raises:
        ConfigError: a layer's cache is laid out in a way that cannot be pulled.
    """
    return tuple(
        _group(group.kv_cache_spec.block_size, {name: caches[name] for name in group.layer_names})
        for group in config.kv_cache_groups
    )


def _group(block_tokens: int, caches: Mapping[str, torch.Tensor]) -> Group:
    found = {_layout(name, cache, block_tokens): None for name, cache in caches.items()}
    if len(found) != 1:
        raise _unlike(f"the layers {', '.join(sorted(caches))[:200]} of one KV group differ in their layouts")
    (layout,) = found
    return Group(layout, tuple(Span(cache.data_ptr(), layout.extent) for cache in caches.values()))


def _layout(name: str, cache: torch.Tensor, block_tokens: int) -> Any:
    item = cache.element_size()
    if cache.dim() != AXES or cache.shape[2] != block_tokens or not cache[0, 0].is_contiguous():
        raise _unlike(f"{name}: a cache of shape {tuple(cache.shape)} and strides {cache.stride()}")
    blocks, heads = cache.shape[0], cache.shape[1]
    cell = cache.shape[2] * cache.shape[3] * item
    if heads > 1 and cache.stride(1) * item != cell:
        raise _unlike(f"{name}: heads {cache.stride(1) * item} bytes apart, {cell} long")
    return cpu_packed(blocks, block_tokens, heads, cell, block_stride=cache.stride(0) * item)


def _unlike(what: str) -> ConfigError:
    return ConfigError(f"{what} cannot be pulled", remedy="leave --kv-transfer-config out, or report this model")


def shape(vllm_config: Any, config: Any) -> Shape:
    """What the scheduler needs; the same in each process of the engine. Raises ConfigError as `revision` does."""
    model = vllm_config.model_config
    heads = 1 if model.use_mla else model.get_total_num_kv_heads()
    blocks = tuple(group.kv_cache_spec.block_size for group in config.kv_cache_groups)
    return Shape(_form(vllm_config, config, heads), blocks, heads, bool(model.use_mla), config.num_blocks)


def keeps_parts(vllm_config: Any, config: Any) -> bool:
    """Whether a prompt of which a part was pulled can be computed from there on.

    With several KV groups ids do not name blocks for vLLM, which ends the engine when it is told some
    (`Scheduler._handle_invalid_blocks`). For MLA without AMX vLLM's `CpuPlatform` turns off all that would go on behind
    a part (chunked prefill, prefix caching); told of blocks it did so nevertheless, and gave other tokens (0.32).
    """
    chunks = bool(vllm_config.scheduler_config.enable_chunked_prefill)
    return len(config.kv_cache_groups) == 1 and (chunks or not vllm_config.model_config.use_mla)


def _form(vllm_config: Any, config: Any, heads: int) -> str:
    """A digest of everything that must be equal on both sides, so that bytes of one mean the same on the other.

    The layers' own geometry stands in it and the revision of the weights, not the folder: copies of one model may lie
    anywhere, and another fine-tune may lie at the same path.
    """
    model = vllm_config.model_config
    facts = [
        revision(folder(model)),
        json.dumps(_plain(model.hf_config.to_dict()), sort_keys=True, default=str),
        str(model.dtype),
        str(vllm_config.cache_config.cache_dtype),
        str(heads),
        *_instructions(),
    ]
    for group in config.kv_cache_groups:
        spec = group.kv_cache_spec
        facts += [type(spec).__name__, str(spec.block_size), str(getattr(spec, "head_size", 0)), *group.layer_names]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()


def _plain(config: dict[str, object]) -> dict[str, object]:
    """Without where it was loaded from and by whom."""
    return {name: value for name, value in config.items() if name[0] != "_" and name != "transformers_version"}


def _instructions() -> tuple[str, ...]:
    """What vLLM chooses its packing by (`_get_attn_isa`)."""
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return platform.machine(), *(name for name in ("amx_tile", "avx512_f", "avx2", "sve") if found.get(name))
