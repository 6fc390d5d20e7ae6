"""The checkpoint's own tensors, for engines whose kernels lay weights out differently: read from the source's files, a
block at a time, and handed to the starter's own loading.

Extents are the checkpoint's tensors, whole, so their table is the same for every rank and parallel size; `dtype` is as
safetensors writes it. The files may change or shrink under a source: they are read, never mapped, and what does not
match the sums is refused by the starter.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from typing import NamedTuple

from native import _native
from transfer.errors import TransferError
from transfer.netloader.identity import CHECKPOINT, Identity
from transfer.netloader.manifest import BLOCK, Extent, Grid, Manifest, manifest
from transfer.netloader.source import Source
from transfer.transports.channel import view
from transfer.transports.outgoing import Block


class Place(NamedTuple):
    """Where a tensor's bytes lie: an open file, and the offset in it."""

    descriptor: int
    offset: int


def checkpoint_identity(model: str) -> Identity:
    """Of the checkpoint of that revision, as nobody's kernels lay it out."""
    return Identity(model=model, dtype="", vllm="", kernels=CHECKPOINT)


class FileSource(Source):
    """What is served from files. Read by many threads, each with a block of memory of its own."""

    def __init__(self, whole: Manifest, places: Sequence[Place]) -> None:
        """Takes the descriptors over."""
        super().__init__(whole, ())
        self._places = tuple(places)
        self._mine = threading.local()

    def block(self, number: int) -> Block:
        """As `Source.block`; out of the file, without a copy of ours."""
        block = self.manifest.grid.block(number)
        place = self._places[block.extent]
        return Block(number, self.manifest.sum(number), block.length, place.offset + block.offset, place.descriptor)

    def address(self, number: int) -> int:
        """Where block `number` lies until this thread asks for the next. Raises TransferError."""
        block = self.manifest.grid.block(number)
        place = self._places[block.extent]
        return _read(self._mine, place.descriptor, place.offset + block.offset, block.length)

    def close(self) -> None:
        """Nobody reads any more."""
        for descriptor in {place.descriptor for place in self._places}:
            os.close(descriptor)
        self._places = ()


def summed(model: str, extents: Sequence[Extent], places: Sequence[Place]) -> Manifest:
    """The manifest of these files: reads all of them once. Raises TransferError."""
    grid, mine, sums = Grid(extents), threading.local(), []
    for number in range(grid.blocks):
        block = grid.block(number)
        place = places[block.extent]
        address = _read(mine, place.descriptor, place.offset + block.offset, block.length)
        sums.append(_native.crc32c(address, block.length))
    return manifest(checkpoint_identity(model), extents, sums)


def _read(mine: threading.local, descriptor: int, offset: int, length: int) -> int:
    if not hasattr(mine, "block"):
        mine.block = ctypes.create_string_buffer(BLOCK)
    address = ctypes.addressof(mine.block)
    try:
        got = os.preadv(descriptor, [view(address, length)], offset)
    except OSError as error:
        raise TransferError(f"the checkpoint cannot be read: {error}", remedy="see the source's disk") from error
    if got != length:
        raise TransferError("the checkpoint's file is shorter than it was", remedy="start the source anew")
    return address
