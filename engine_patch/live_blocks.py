"""Which KV blocks must outlive a switch: vLLM's scheduler knows, in the EngineCore process.

It reads the block pool (vllm/v1/core/block_pool.py, 0.32.0): blocks that requests hold have `ref_cnt > 0`, the free
queue has the rest in the order in which vLLM itself would evict them. Called while the scheduler is paused
(`engine_patch.core_calls`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

log = logging.getLogger("vllm.vnpu.live_blocks")


def choose(held: Sequence[int], cached: Sequence[int], room: int | None) -> tuple[list[int], list[int]] | None:
    """PURE. Blocks to keep and cached blocks to give up, where `room` blocks may be kept (None: all): those that
    requests hold first, then cached ones, the most recently used of them (`cached` begins with the least recently
    used). None: not even those that requests hold have room."""
    if room is None:
        return [*held, *cached], []
    if len(held) > room:
        return None
    gone = max(0, len(cached) - (room - len(held)))
    return [*held, *cached[gone:]], list(cached[:gone])


def live_blocks(core: Any, budget: int | None) -> list[int]:
    """Ids of the blocks to keep within `budget` bytes a device (None: all). What is not kept is dropped from the prefix
    cache, and requests that hold more than the budget are preempted: both compute it again, neither reads it."""
    scheduler = core.scheduler
    manager = scheduler.kv_cache_manager
    pool = manager.block_pool
    held = [block.block_id for block in pool.blocks if block.ref_cnt > 0 and not block.is_null]
    cached = [block.block_id for block in pool.free_block_queue.get_all_free_blocks() if block.block_hash is not None]
    if core.vllm_config.kv_transfer_config is not None:
        budget = None  # a connector writes blocks that the scheduler does not count: all are kept
    room = None if budget is None else _room(scheduler.kv_cache_config, budget)
    chosen = choose(held, cached, room)
    if chosen is None:
        log.info("%d KV blocks are in use, %s may be kept: what runs is computed again", len(held), room)
        scheduler.reset_prefix_cache(reset_running_requests=True)
        return []
    kept, gone = chosen
    manager.evict_blocks(set(gone))
    return kept


def _room(config: Any, budget: int) -> int:
    sizes = [tensor.size for tensor in config.kv_cache_tensors]
    # Views of one buffer say where they lie in it (vLLM 0.32); before, each tensor had memory of its own.
    shared = any(hasattr(tensor, "offset") for tensor in config.kv_cache_tensors)
    size = max(sizes, default=0) if shared else sum(sizes)
    return budget * config.num_blocks // size if size else 0
