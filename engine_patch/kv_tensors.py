"""Where KV blocks lie, read off the cache tensors themselves: for vLLM before 0.32, whose configuration does not say
it, and for platforms that allocate their own way (vllm-ascend: one tensor for K, one for V, in every layer)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from engine_patch.kv_blocks import KvBlocks, Place
from engine_patch.restoring import MemoryFault

CERTAIN = 2
"""With more blocks than this a dimension of K and V (2) is not taken for that of the blocks."""


class Storage(Protocol):
    def data_ptr(self) -> int: ...


class Tensor(Protocol):
    """The part of torch.Tensor that is used."""

    @property
    def shape(self) -> Sequence[int]: ...

    def stride(self) -> Sequence[int]: ...

    def element_size(self) -> int: ...

    def data_ptr(self) -> int: ...

    def untyped_storage(self) -> Storage: ...


Nested = Tensor | Sequence["Nested"]


def flat(caches: Iterable[Nested]) -> Iterator[Tensor]:
    """Every tensor of `model_runner.kv_caches`, which holds tensors, and tuples or lists of them."""
    for cache in caches:
        if isinstance(cache, Sequence):
            yield from flat(cache)
        else:
            yield cache


def books_of(caches: Sequence[Tensor], blocks: int, base: int, size: int, *, everything: bool) -> KvBlocks:
    """Books over the `size` bytes from `base`, in which all `caches` lie. Where blocks cannot be told apart, all bytes
    count as written.

    Raises:
        MemoryFault: a cache lies elsewhere.
    """
    places: list[Place] = []
    for cache in caches:
        offset = cache.data_ptr() - base
        if not 0 <= offset < size:
            raise MemoryFault("a KV cache did not land in device pages", remedy="report your versions of vLLM, torch")
        found = place_of(cache.shape, cache.stride(), cache.element_size(), offset, blocks)
        if found is None:
            everything = True
        elif found not in places:  # layers may share a cache
            places.append(found)
    return KvBlocks(places, blocks, size, everything=everything)


def place_of(shape: Sequence[int], stride: Sequence[int], element: int, offset: int, blocks: int) -> Place | None:
    """PURE. Where the blocks of a cache lie that begins at `offset`: its first dimension counts blocks, or, where it is
    2 (K and V), the second; a block may be several rows of it (kernels with smaller blocks). None: neither, or the
    bytes of a block are not neighbours.

    `shape` and `stride` in elements of `element` bytes.
    """
    if blocks <= CERTAIN:
        return None
    for dim in (0, 1) if len(shape) > 1 and shape[0] == CERTAIN else (0,):
        if not shape or shape[dim] == 0 or shape[dim] % blocks:
            continue
        inner = math.prod(shape[dim + 1 :])
        if not _dense(shape[dim + 1 :], stride[dim + 1 :]) or stride[dim] < inner:
            return None
        rows = shape[dim] // blocks
        if rows > 1 and stride[dim] != inner:
            return None
        step = stride[dim] * rows * element
        outer = (shape[0], stride[0] * element) if dim else (1, 0)
        return Place(offset, outer[0], outer[1], step, inner * rows * element)
    return None


def _dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether these dimensions cover their bytes without gaps, in any order."""
    expected = 1
    for step, count in sorted(zip(stride, shape, strict=True)):
        if count > 1 and step != expected:
            return False
        expected *= count
    return True
