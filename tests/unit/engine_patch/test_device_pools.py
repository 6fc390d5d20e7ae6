"""Our pool over a torch that allocates as torch's caching allocator does: whole segments from the pluggable allocator,
several tensors in one, what became free is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine_patch.device_pools import TorchPools
from native._native import Arena
from native.protocol import Kind
from tests.helpers.torch_memory import Pluggable, Torch

MIB = 1 << 20
DEVICE = 9
BASE = 17 << 40
"""Addresses that nobody has mapped: the arena hands them out, nobody touches them."""


@pytest.fixture
def torch() -> Torch:
    return Torch(DEVICE)


@pytest.fixture
def pools(torch: Torch) -> Iterator[TorchPools]:
    made = TorchPools(torch, "Allocator", torch.synchronize, DEVICE)
    yield made
    made.close()


def arena_at(gib: int) -> Arena:
    return Arena(BASE + (gib << 30), 1 << 30, 2 * MIB, 64 * MIB)


def test_tensors_land_in_the_arena_of_their_kind(torch: Torch, pools: TorchPools) -> None:
    weights, kv = arena_at(0), arena_at(1)
    with pools.allocating(Kind.WEIGHTS, weights):
        assert torch.tensor(3 * MIB) == weights.base
    with pools.allocating(Kind.KV, kv):
        assert torch.tensor(5 * MIB) == kv.base
    assert pools.live(Kind.WEIGHTS, weights) == [(0, 3 * MIB)]
    assert pools.live(Kind.KV, kv) == [(0, 5 * MIB)]
    assert torch.order == ["synchronize", "empty"] * 2


def test_what_is_free_within_a_segment_is_not_live(torch: Torch, pools: TorchPools) -> None:
    arena = arena_at(2)
    with pools.allocating(Kind.WEIGHTS, arena):
        torch.tensor(MIB, segment=20 * MIB)
        torch.tensor(30 * MIB)
    torch.segments[0]["blocks"] = [
        {"size": MIB, "state": "active_allocated"},
        {"size": 4 * MIB, "state": "inactive"},
        {"size": 2 * MIB, "state": "active_pending_free"},
        {"size": 13 * MIB, "state": "inactive"},
    ]
    assert pools.live(Kind.WEIGHTS, arena) == [(0, MIB), (5 * MIB, 2 * MIB), (20 * MIB, 30 * MIB)]


def test_outside_of_it_nothing_is_given(torch: Torch, pools: TorchPools) -> None:
    arena = arena_at(3)
    with pools.allocating(Kind.WEIGHTS, arena):
        torch.tensor(MIB)
        pool = torch._pool
    with torch.use_mem_pool(pool), pytest.raises(MemoryError):
        torch.tensor(MIB)


def test_what_does_not_fit_is_out_of_memory_and_counted(torch: Torch, pools: TorchPools) -> None:
    arena = arena_at(4)
    with pytest.raises(MemoryError), pools.allocating(Kind.WEIGHTS, arena):
        torch.tensor(65 * MIB)
    assert arena.spilled_bytes == 65 * MIB
    with torch.use_mem_pool(Pluggable(*_names())), pytest.raises(MemoryError):
        torch.tensor(MIB)


def _names() -> tuple[str, str, str]:
    from native import _native

    return _native.__file__, "vnpu_malloc", "vnpu_free"
