"""PURE: which bytes of the KV buffer must outlive a switch, and which must be zeroed before they are used again.

A block is written only after the scheduler has given it to a request, so the ids it ever gave out are a superset of
what was written (facts: vLLM 0.32, `SchedulerOutput`). Block 0, vLLM's null block, counts as written from the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

Range = tuple[int, int]
"""Offset into the KV buffer and length, in bytes."""


class Place(msgspec.Struct, frozen=True):
    """Where same-shaped layers lie, as vLLM's KVCacheTensor says: the page of layer l and block b, `page` bytes,
    starts at `offset + l * layer_stride + b * block_stride`."""

    offset: int
    layers: int
    layer_stride: int
    block_stride: int
    page: int


class KvBlocks:
    """Books over the blocks of one KV buffer of `size` bytes. `everything`: somebody else writes blocks as well (a KV
    connector, layers without pages), so that the whole buffer counts as written."""

    def __init__(self, places: Sequence[Place], blocks: int, size: int, *, everything: bool = False) -> None:
        self._places = tuple(places)
        self._size = size
        self._everything = everything or not places
        self._written: set[int] = {0} if blocks else set()
        self._stale: set[int] = set()
        self._blocks = blocks

    @property
    def written(self) -> frozenset[int]:
        return frozenset(self._written)

    def use(self, ids: Iterable[int]) -> list[Range]:
        """The scheduler gives `ids` to requests: the ranges to zero first, because they hold what another engine left
        there. (Garbage would be masked, but 0 * NaN is NaN.)"""
        new = [b for b in ids if b not in self._written]
        self._written.update(new)
        if not self._stale:
            return []
        dirty = self._stale.intersection(new)
        self._stale -= dirty
        return self._ranges(dirty)

    def keep(self) -> list[Range]:
        """The ranges to save before the memory goes away and to bring back afterwards."""
        return [(0, self._size)] if self._everything else self._ranges(self._written)

    def renewed(self) -> None:
        """The memory came back with what `keep` named; everything else in it is foreign."""
        if not self._everything:
            self._stale = set(range(self._blocks)) - self._written

    def _ranges(self, ids: Iterable[int]) -> list[Range]:
        pages = sorted(
            (p.offset + layer * p.layer_stride + b * p.block_stride, p.page)
            for b in set(ids)
            for p in self._places
            for layer in range(p.layers)
        )
        return coalesce(pages)


def coalesce(ranges: Iterable[Range]) -> list[Range]:
    """Sorted ranges with those that touch or overlap merged (KV groups may overlay each other)."""
    merged: list[Range] = []
    for start, length in ranges:
        if merged and start <= merged[-1][0] + merged[-1][1]:
            first, so_far = merged[-1]
            merged[-1] = (first, max(so_far, start + length - first))
        else:
            merged.append((start, length))
    return merged


def gaps(ranges: Sequence[Range], size: int) -> list[Range]:
    """What sorted, disjoint `ranges` leave free of `[0, size)`."""
    free: list[Range] = []
    end = 0
    for start, length in ranges:
        if start > end:
            free.append((end, start - end))
        end = start + length
    if size > end:
        free.append((end, size - end))
    return free
