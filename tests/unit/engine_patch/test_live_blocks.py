"""Which KV blocks outlive a switch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from engine_patch.live_blocks import choose, live_blocks

MIB = 1 << 20


@given(st.integers(0, 8), st.integers(0, 8), st.none() | st.integers(0, 20))
def test_what_is_held_comes_first_then_the_most_recently_used(held: int, cached: int, room: int | None):
    holding, caching = list(range(held)), list(range(100, 100 + cached))
    chosen = choose(holding, caching, room)
    if chosen is None:
        assert room is not None
        assert held > room
        return
    kept, gone = chosen
    assert kept[:held] == holding
    assert gone + kept[held:] == caching
    assert room is None or len(kept) <= room
    assert not gone or len(kept) == room, "nothing is given up that has room"


class Core:
    """EngineCore as far as it is read: eight blocks of 1 MiB; 0 is vLLM's null block, 1 and 2 are held, 3 to 6 are
    free, of which 4, 5, 6 are cached."""

    def __init__(self, *, connector: bool = False) -> None:
        self.evicted: set[int] = set()
        self.preempted = False
        blocks = [
            SimpleNamespace(
                block_id=i, ref_cnt=int(i < 3), is_null=i == 0, block_hash="h" if i in (1, 4, 5, 6) else None
            )
            for i in range(8)
        ]
        free = SimpleNamespace(get_all_free_blocks=lambda: blocks[3:])
        pool = SimpleNamespace(blocks=blocks, free_block_queue=free)
        config = SimpleNamespace(num_blocks=8, kv_cache_tensors=[SimpleNamespace(size=8 * MIB)])
        manager = SimpleNamespace(block_pool=pool, evict_blocks=self.evicted.update)
        self.vllm_config = SimpleNamespace(kv_transfer_config=object() if connector else None)
        self.scheduler = SimpleNamespace(
            kv_cache_manager=manager, kv_cache_config=config, reset_prefix_cache=self._reset
        )

    def _reset(self, **options: Any) -> None:
        assert options == {"reset_running_requests": True}
        self.preempted = True


@pytest.mark.parametrize(
    ("budget", "kept", "evicted"),
    [
        (None, [1, 2, 4, 5, 6], set()),
        (8 * MIB, [1, 2, 4, 5, 6], set()),
        (4 * MIB, [1, 2, 5, 6], {4}),
        (3 * MIB - 1, [1, 2], {4, 5, 6}),
    ],
)
def test_what_is_trimmed_leaves_the_prefix_cache(budget: int | None, kept: list[int], evicted: set[int]):
    core = Core()
    assert live_blocks(core, budget) == kept
    assert (core.evicted, core.preempted) == (evicted, False)


def test_requests_that_hold_more_than_the_budget_are_computed_again():
    core = Core()
    assert live_blocks(core, 2 * MIB - 1) == []
    assert core.preempted


def test_with_a_connector_everything_is_kept():
    core = Core(connector=True)
    assert live_blocks(core, 0) == [1, 2, 4, 5, 6]
    assert (core.evicted, core.preempted) == (set(), False)
