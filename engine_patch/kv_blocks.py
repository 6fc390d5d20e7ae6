"""PURE: which bytes of the KV buffer must outlive a switch. The others are zero when the memory comes back: the daemon
gives only blank chunks for KV (garbage would be masked, but 0 * NaN is NaN).

A block is written only after the scheduler has given it to a request, so the ids it ever gave out are a superset of
what was written (facts: vLLM 0.32, `SchedulerOutput`); at a switch the scheduler says which of them are still needed
(`live_blocks`). Block 0, vLLM's null block, counts as written from the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

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

    @property
    def written(self) -> frozenset[int]:
        return frozenset(self._written)

    def use(self, ids: Iterable[int]) -> None:
        """The scheduler gives `ids` to requests."""
        self._written.update(ids)

    def forget_all_but(self, live: Iterable[int]) -> None:
        """Of what was written, only `live` is needed by anybody; the rest is as if it had never been written."""
        self._written &= {0, *live}

    def keep(self) -> list[Range]:
        """The ranges to save before the memory goes away and to bring back afterwards."""
        return [(0, self._size)] if self._everything else self._ranges(self._written)

    def _ranges(self, ids: Iterable[int]) -> list[Range]:
        runs = coalesce((b, 1) for b in sorted(ids))
        return coalesce(sorted(found for place in self._places for found in _pages(place, runs)))


def _pages(place: Place, runs: Sequence[Range]) -> Iterator[Range]:
    """The ranges of runs of blocks `(first, count)`: one a run and layer where a layer's pages are neighbours, one a
    run where the layers of a block are neighbours as well."""
    layers, size = place.layers, place.page
    if place.layer_stride == place.page:
        layers, size = 1, place.layers * place.page
    for first, count in runs:
        for layer in range(layers):
            start = place.offset + layer * place.layer_stride + first * place.block_stride
            if place.block_stride == size:
                yield start, count * size
            else:
                yield from ((start + b * place.block_stride, size) for b in range(count))


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
