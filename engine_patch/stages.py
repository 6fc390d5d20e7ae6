"""PURE: in which order the weights come back, so that the first forward pass can begin before the last byte is there.

Stage 0 comes first and is waited for before anything runs: whatever nobody is known to use alone. A later stage belongs
to one decoder layer or to one kernel within it, the last to the output head. What lies in a stage is there once the
stage and all before it are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

Range = tuple[int, int]
"""Offset into the region and length, in bytes."""
Entry = tuple[int, int, int]
"""Destination, source, length."""


class Owners(msgspec.Struct, frozen=True):
    """`stage` of each block of the arena that has one, of `count` stages."""

    count: int = 1
    stage: dict[Range, int] = {}


def units_by_stage(
    units: Iterable[int], unit: int, blocks: Sequence[Range], owners: Owners
) -> tuple[tuple[int, ...], ...]:
    """Which of the `units` (pieces of `unit` bytes, by number) come back in which stage: each in the first of those
    that need a byte of it. A live block without an owner is needed by stage 0, holes by nobody."""
    first: dict[int, int] = {}
    for block in blocks:
        stage = owners.stage.get(block, 0)
        start, length = block
        for index in range(start // unit, -(-(start + length) // unit)):
            first[index] = min(stage, first.get(index, stage))
    stages: list[list[int]] = [[] for _ in range(owners.count)]
    for index in sorted(units):
        stages[first.get(index, owners.count - 1)].append(index)
    return tuple(tuple(one) for one in stages)


def entries_of(units: Sequence[int], unit: int, base: int, source: Mapping[int, int]) -> list[Entry]:
    """Copies that bring these units back to `base + index * unit`; `source` says where each lies. Neighbours on both
    sides go in one."""
    entries: list[Entry] = []
    for index in units:
        to, at = base + index * unit, source[index]
        if entries and (entries[-1][0] + entries[-1][2], entries[-1][1] + entries[-1][2]) == (to, at):
            last = entries[-1]
            entries[-1] = (last[0], last[1], last[2] + unit)
        else:
            entries.append((to, at, unit))
    return entries


def end_to_end(ranges: Iterable[Range], address: int) -> list[Entry]:
    """Each range, with the place it has when all are laid end to end from `address`: (range, place, length)."""
    entries: list[Entry] = []
    for start, length in ranges:
        entries.append((start, address, length))
        address += length
    return entries
