"""What a source holds: its identity, its extents in order, and the sum of every block. Pure.

Extents are cut into blocks of `BLOCK` bytes (the last of each may be shorter), numbered through all extents; a block is
what one frame carries. A manifest says what the bytes must be before any has come, so that sources can be mixed.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Annotated, NamedTuple

import msgspec

from native import _native
from transfer.errors import PeerViolation
from transfer.netloader.identity import CHECKPOINT, Identity

BLOCK = 1 << 20
MAX_EXTENTS = 1 << 18
MAX_MANIFEST = 16 << 20
"""Bytes of an encoded manifest: enough for 1 TiB of weights in 50,000 extents, and what one frame takes."""

_SUM = struct.Struct(">I")
Size = Annotated[int, msgspec.Meta(gt=0, le=1 << 46)]
Shape = Annotated[tuple[int, ...], msgspec.Meta(max_length=16)]


class Extent(msgspec.Struct, frozen=True, array_like=True):
    """One run of bytes. `offset`: in the arena, or -1: elsewhere. `dtype`, `shape` and `stride` (in elements) are
    those of the tensor that it is; a block that a kernel packed has none."""

    name: Annotated[str, msgspec.Meta(max_length=512)]
    length: Size
    offset: int = -1
    dtype: Annotated[str, msgspec.Meta(max_length=64)] = ""
    shape: Shape = ()
    stride: Shape = ()


def layout_digest(extents: Iterable[Extent]) -> str:
    """Of the table of extents: `Identity.layout`."""
    return hashlib.sha256(msgspec.msgpack.encode(list(extents))).hexdigest()[:32]


class Block(NamedTuple):
    """`extent` is the extent's index, `offset` the place in it."""

    extent: int
    offset: int
    length: int


class Grid:
    """The blocks of a table of extents."""

    def __init__(self, extents: Sequence[Extent]) -> None:
        self._lengths = [extent.length for extent in extents]
        counts = [-(-length // BLOCK) for length in self._lengths]
        self._first = [0, *accumulate(counts)]
        self.blocks = self._first[-1]
        self.size = sum(self._lengths)

    def block(self, number: int) -> Block:
        """Raises IndexError where there is no such block."""
        if not 0 <= number < self.blocks:
            raise IndexError(f"block {number} of {self.blocks}")
        extent = bisect_right(self._first, number) - 1
        offset = (number - self._first[extent]) * BLOCK
        return Block(extent, offset, min(BLOCK, self._lengths[extent] - offset))

    def of_extent(self, extent: int) -> range:
        """Its blocks' numbers."""
        return range(self._first[extent], self._first[extent + 1])


class Manifest(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """`sums`: 4 bytes a block, CRC-32C, big-endian. `digests`: one an extent, folded from them."""

    identity: Identity
    extents: Annotated[tuple[Extent, ...], msgspec.Meta(min_length=1, max_length=MAX_EXTENTS)]
    sums: Annotated[bytes, msgspec.Meta(max_length=MAX_MANIFEST)]
    digests: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)], ...], msgspec.Meta(max_length=MAX_EXTENTS)
    ]

    @cached_property
    def grid(self) -> Grid:
        return Grid(self.extents)

    @property
    def size(self) -> int:
        return self.grid.size

    @cached_property
    def digest(self) -> str:
        """Of the content: two sources with the same one can be mixed."""
        return hashlib.sha256(self.sums).hexdigest()[:32]

    def sum(self, number: int) -> int:
        (one,) = _SUM.unpack_from(self.sums, number * _SUM.size)
        return int(one)

    def check(self) -> None:
        """Raises PeerViolation where the manifest contradicts itself."""
        laid_out = self.identity.kernels != CHECKPOINT  # else it is the source that says what the checkpoint holds
        if laid_out and layout_digest(self.extents) != self.identity.layout:
            raise PeerViolation("the table of extents is not the one that the identity names")
        if len(self.sums) != self.grid.blocks * _SUM.size or len(self.digests) != len(self.extents):
            raise PeerViolation(f"{len(self.sums)} bytes of sums for {self.grid.blocks} blocks")
        if self.digests != digests_of(self.grid, self.sums, len(self.extents)):
            raise PeerViolation("a digest is not the fold of its blocks' sums")


def manifest(identity: Identity, extents: Sequence[Extent], sums: Iterable[int]) -> Manifest:
    """Of what is there; `sums`: CRC-32C of each block in the grid's order."""
    packed, grid = b"".join(_SUM.pack(one) for one in sums), Grid(extents)
    return Manifest(
        identity=identity, extents=tuple(extents), sums=packed, digests=digests_of(grid, packed, len(extents))
    )


def digests_of(grid: Grid, sums: bytes, extents: int) -> tuple[int, ...]:
    """CRC-32C of each extent, folded from its blocks'."""
    each = [one for (one,) in _SUM.iter_unpack(sums)]
    return tuple(_digest_of(grid, each, grid.of_extent(e)) for e in range(extents))


def _digest_of(grid: Grid, sums: Sequence[int], blocks: range) -> int:
    """Only the last block may be shorter. So sums that are checked anyway give a tensor's digest without reading it
    again."""
    *full, last = sums[blocks.start : blocks.stop]
    return _native.crc32c_fold([(one, BLOCK) for one in full] + [(last, grid.block(blocks[-1]).length)])
