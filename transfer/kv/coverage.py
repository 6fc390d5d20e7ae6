"""Which cells of a request's blocks have arrived: a cell is one unit of one head in one layer, and all of its bytes.

Bits in Python integers: 32,000 tokens in blocks of 128 and 8 heads are 2,000 bits a layer. That cells are disjoint and
make up every byte of a block is the layout's (`KvLayout`, `boxes`) and tested there.
"""

from __future__ import annotations

from collections.abc import Iterable

from transfer.kv.plan import Pull


class Overlap(ValueError):
    """Two sources wrote the same cell: one of them is wrong, and nobody can say which."""


def cells(pulls: Iterable[Pull], heads: int) -> int:
    """Bits of the cells that these pulls fill in one layer; bit `unit * heads + head`, heads local to the reader.

    Raises:
        Overlap: a cell is filled twice.
    """
    bits = 0
    for pull in pulls:
        row = ((1 << pull.num_heads) - 1) << pull.dst_head
        part = sum(row << unit * heads for unit in range(pull.block_lo, pull.block_hi))
        if bits & part:
            raise Overlap(f"{pull} fills cells that are filled already")
        bits |= part
    return bits


def whole(bits: int, heads: int, units: int, units_per_block: int) -> list[bool]:
    """For each block of the reader whether all of its cells are there; the last block may have fewer units."""
    found = []
    for first in range(0, units, units_per_block):
        count = min(units_per_block, units - first)
        full = (1 << count * heads) - 1
        found.append((bits >> first * heads) & full == full)
    return found


def without(bits: int, heads: int, units: Iterable[int]) -> int:
    """The cells less those of these units."""
    row = (1 << heads) - 1
    for unit in units:
        bits &= ~(row << unit * heads)
    return bits
