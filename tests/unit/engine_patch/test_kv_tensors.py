"""Where KV blocks lie, as real tensors have it."""

from __future__ import annotations

import pytest
import torch

from engine_patch.kv_tensors import books_of, flat, place_of
from engine_patch.restoring import MemoryFault

BLOCKS = 5


def place(tensor: torch.Tensor, base: int) -> tuple[int, ...] | None:
    offset = tensor.data_ptr() - base
    found = place_of(tensor.shape, tensor.stride(), tensor.element_size(), offset, BLOCKS)
    return found and (found.offset, found.layers, found.layer_stride, found.block_stride, found.page)


def test_a_tensor_of_k_has_its_blocks_first() -> None:
    cache = torch.zeros(BLOCKS, 16, 2, 8, dtype=torch.bfloat16)
    page = 16 * 2 * 8 * 2
    assert place(cache, cache.data_ptr()) == (0, 1, 0, page, page)


def test_k_and_v_in_one_tensor_either_way_round() -> None:
    page = 16 * 2 * 8 * 2
    cache = torch.zeros(2, BLOCKS, 16, 2, 8, dtype=torch.bfloat16)
    assert place(cache, cache.data_ptr()) == (0, 2, BLOCKS * page, page, page)
    cache = torch.zeros(BLOCKS, 2, 16, 2, 8, dtype=torch.bfloat16)
    assert place(cache, cache.data_ptr()) == (0, 1, 0, 2 * page, 2 * page)


def test_a_kernel_may_cut_blocks_into_several() -> None:
    cache = torch.zeros(BLOCKS * 4, 16, 2, 8, dtype=torch.float32)
    page = 4 * 16 * 2 * 8 * 4
    assert place(cache, cache.data_ptr()) == (0, 1, 0, page, page)


def test_a_permuted_block_is_still_its_bytes() -> None:
    cache = torch.zeros(BLOCKS, 2, 16, 8).transpose(1, 2)
    assert place(cache, cache.data_ptr()) == (0, 1, 0, 2 * 16 * 8 * 4, 2 * 16 * 8 * 4)


def test_blocks_that_are_no_neighbours_of_themselves_are_not_told_apart() -> None:
    wide = torch.zeros(BLOCKS, 4, 16)
    assert place(wide[:, :, :8], wide.data_ptr()) is None
    assert place(torch.zeros(3, 7, 8), 0) is None
    assert place_of((2, 2, 8), (16, 8, 1), 4, 0, 2) is None
    assert place_of((2 * BLOCKS, 8), (16, 1), 4, 0, BLOCKS) is None  # two rows a block, with a gap between them


def test_books_over_a_layers_k_and_v_name_exactly_the_bytes_of_a_block() -> None:
    memory = torch.zeros(1 << 16, dtype=torch.uint8)
    base = memory.data_ptr()
    page = 64
    k = memory[1024 : 1024 + BLOCKS * page].view(BLOCKS, page)
    v = memory[4096 : 4096 + BLOCKS * page].view(BLOCKS, page)
    books = books_of(list(flat([(k, v), [k]])), BLOCKS, base, 1 << 16, everything=False)
    books.use([2])
    books.forget_all_but([2])
    memory[k[2].data_ptr() - base :][:page] = 1
    memory[v[2].data_ptr() - base :][:page] = 1
    kept = set()
    for offset, length in books.keep():
        kept.update(range(offset, offset + length))
    assert {i for i in range(1 << 16) if memory[i]} <= kept
    assert len(kept) == 2 * 2 * page  # the null block counts as written


def test_a_cache_that_hides_its_blocks_is_kept_whole() -> None:
    memory = torch.zeros(3, 7, 8, dtype=torch.uint8)
    books = books_of([memory], BLOCKS, memory.data_ptr(), memory.numel(), everything=False)
    assert books.keep() == [(0, memory.numel())]


def test_a_cache_elsewhere_is_refused() -> None:
    cache = torch.zeros(BLOCKS, 16)
    with pytest.raises(MemoryFault, match="device pages"):
        books_of([cache], BLOCKS, cache.data_ptr() + 4096, 4096, everything=False)
