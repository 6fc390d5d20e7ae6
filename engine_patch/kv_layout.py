"""Reads vLLM's KVCacheConfig (vllm/v1/kv_cache_interface.py, 0.32.0) into the terms of `kv_blocks`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from engine_patch.kv_blocks import KvBlocks, Place


def books(config: Any, *, everything: bool) -> KvBlocks:
    """Books over the one KV buffer that `config` describes. `everything`: a KV connector writes blocks as well."""
    specs = {name: _spec(group, name) for group in config.kv_cache_groups for name in group.layer_names}
    tensors = config.kv_cache_tensors
    paged = all(specs[tensor.layers[0]].has_layer_views for tensor in tensors)
    places = [
        Place(
            offset=tensor.offset,
            layers=len(tensor.layers),
            layer_stride=tensor.layer_stride,
            block_stride=tensor.block_stride,
            page=specs[tensor.layers[0]].page_size_bytes,
        )
        for tensor in tensors
        if paged
    ]
    size = max((tensor.size for tensor in tensors), default=0)
    return KvBlocks(places, config.num_blocks, size, everything=everything or not paged)


def _spec(group: Any, layer: str) -> Any:
    """A group of layers of unlike sizes has a spec for each."""
    spec = group.kv_cache_spec
    return spec.kv_cache_specs[layer] if hasattr(spec, "kv_cache_specs") else spec


def scheduled_blocks(output: Any) -> set[int]:
    """Block ids that a SchedulerOutput (vllm/v1/core/sched/output.py) gives to requests."""
    ids: set[int] = set()
    for request in output.scheduled_new_reqs:
        for group in request.block_ids:
            ids.update(group)
    for groups in output.scheduled_cached_reqs.new_block_ids:
        for group in groups or ():
            ids.update(group)
    return ids


def written_blocks(output: Any, block_tokens: Sequence[int]) -> set[int]:
    """Those of them that the step, or a later one, writes into: not what a prefix cache hit shares. `block_tokens`: by
    KV group."""
    ids: set[int] = set()
    for request in output.scheduled_new_reqs:
        ids.update(_beyond(request.block_ids, request.num_computed_tokens, block_tokens))
    cached = output.scheduled_cached_reqs
    for name, groups, computed in zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True):
        ids.update(_beyond(groups or (), computed if name in cached.resumed_req_ids else 0, block_tokens))
    return ids


def _beyond(groups: Sequence[Sequence[int]], computed: int, block_tokens: Sequence[int]) -> Iterator[int]:
    for blocks, tokens in zip(groups, block_tokens, strict=False):
        yield from blocks[computed // tokens :]
