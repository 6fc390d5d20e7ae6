"""Pages for the buffers of rolling windows: of this rank's device, charged to it, but neither sealed nor restored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from engine_patch.memory import Hands
from engine_patch.region import Region
from native import _native
from native.protocol import Kind

WINDOWS_AT = 0x3900_0000_0000
SPAN = 1 << 38
CALL_S = 50.0


class Windows(Protocol):
    """Where the buffers lie."""

    def allocating(self, size: int) -> AbstractContextManager[None]:
        """Within it, `size` bytes are allocated there."""
        ...

    def map(self) -> None: ...

    def drop(self) -> None: ...

    @property
    def bytes(self) -> int: ...


class Paged:
    """Buffers in device pages of their own."""

    def __init__(self, hands: Hands) -> None:
        weights = hands.weights
        self._back = weights.arena
        self._region = Region(hands.driver, hands.client, weights.device, Kind.WEIGHTS, weights.chunk, WINDOWS_AT, SPAN)
        self._used: tuple[int, ...] = ()

    @contextmanager
    def allocating(self, size: int) -> Iterator[None]:
        """Raises DaemonRefused."""
        arena = self._region.arena
        self._region.populate(arena, size, CALL_S)
        _native.activate(arena)
        try:
            yield
        finally:
            _native.activate(self._back)
        self._used = tuple(arena.chunks_in_use())
        self._region.drop([i for i in self._region.indices if i not in self._used], CALL_S)

    def map(self) -> None:
        """Raises DaemonRefused."""
        if not self._region.bytes:
            self._region.map(self._used, CALL_S, overwritten=True)

    def drop(self) -> None:
        self._region.drop(self._region.indices, CALL_S)

    @property
    def bytes(self) -> int:
        return self._region.bytes
