"""What one rank serves: a manifest, where each extent lies, what of it is there, and whether it may be read now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from native import _native
from transfer.netloader.guard import Guard
from transfer.netloader.manifest import Extent, Grid, Manifest
from transfer.netloader.work import Whole
from transfer.transports.outgoing import Block


class Presence(Protocol):
    """Which blocks are there."""

    def await_block(self, number: int, timeout_s: float) -> bool: ...


Locate = Callable[[int], int]
"""Where what belongs at an address can be read now, as long as the guard lets one in: while an engine sleeps its
weights lie in the host master."""


class Source:
    """Read by many threads; changes nothing."""

    def __init__(
        self,
        manifest: Manifest,
        addresses: Sequence[int],
        presence: Presence | None = None,
        guard: Guard | None = None,
        locate: Locate | None = None,
    ) -> None:
        """`addresses`: where each extent belongs. `presence` None: all of it is there. `guard` and `locate` None: it
        never goes away."""
        self.manifest = manifest
        self.presence: Presence = presence or Whole()
        self._addresses = addresses
        self._locate = locate
        self._guard = guard or Guard()

    def reading(self, abort: Callable[[], None]) -> AbstractContextManager[int]:
        """See `Guard.reading`."""
        return self._guard.reading(abort)

    @property
    def halt(self) -> _native.Halt:
        """See `Guard.halt`."""
        return self._guard.halt

    def block(self, number: int) -> Block:
        """Block `number` as it can be sent; only within `reading`."""
        length = self.manifest.grid.block(number).length
        return Block(number, self.manifest.sum(number), length, self.address(number))

    def address(self, number: int) -> int:
        """Where block `number` lies; only within `reading`."""
        block = self.manifest.grid.block(number)
        address = self._addresses[block.extent] + block.offset
        return self._locate(address) if self._locate else address


def block_sums(extents: Sequence[Extent], addresses: Sequence[int]) -> list[int]:
    """CRC-32C of each block, from memory: once in a source's life (about 0.1 s/GB)."""
    grid = Grid(extents)
    blocks = map(grid.block, range(grid.blocks))
    return [_native.crc32c(addresses[one.extent] + one.offset, one.length) for one in blocks]
