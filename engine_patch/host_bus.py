"""The bus of the `host` driver: device pages are memory of this process, reached by threads with streaming copies."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from engine_patch.bus import Entry, Range
from engine_patch.copier import Copier
from engine_patch.host_memory import Mapping, read_only
from engine_patch.restoring import Job, MemoryFault
from native import _native
from native.protocol import Kind

WEIGHTS_AT = 0x2000_0000_0000
KV_AT = 0x2800_0000_0000
RESERVED = 1 << 40
"""Address space of each of the two regions: nothing is mapped there that is not needed."""


class HostBus:
    """See `engine_patch.bus.Bus`."""

    readable = True
    shares = True

    def __init__(self, cpus: Sequence[int]) -> None:
        """`cpus`: processors the engine may use; none: all."""
        self._copier = Copier(cpus)

    def room(self, kind: Kind) -> tuple[int, int]:
        return (WEIGHTS_AT if kind is Kind.WEIGHTS else KV_AT), RESERVED

    @contextmanager
    def allocating(self, kind: Kind, arena: _native.Arena) -> Iterator[None]:
        """What torch and oneDNN allocate in this process (64 KiB and more)."""
        if not _native.install_hook():
            raise MemoryFault("there is no allocator to hook: libtorch is not loaded", remedy="report your versions")
        _native.activate(arena)
        try:
            yield
        finally:
            _native.activate(None)

    def live(self, kind: Kind, arena: _native.Arena) -> list[Range]:
        return arena.blocks()

    def lock(self, memory: Mapping) -> None:
        """Nothing to do: a processor copies from all memory alike."""

    def unlock(self, memory: Mapping) -> None:
        """Nothing to do."""

    def quiesce(self) -> None:
        """Nothing to do: a step that was answered is over."""

    def zero(self, ranges: Sequence[Range]) -> None:
        for address, length in ranges:
            ctypes.memset(address, 0, length)

    def protect(self, ranges: Sequence[Range]) -> None:
        try:
            for address, length in ranges:
                read_only(address, length)
        except OSError as error:
            raise MemoryFault(str(error), remedy="report this") from error

    def save(self, entries: Sequence[Entry]) -> None:
        self._copier.copy(entries)

    def start(self, entries: Sequence[Entry], *, beside: bool) -> Job:
        return self._copier.start(entries, beside=beside)

    def digest(self, ranges: Sequence[Range]) -> str:
        return self._copier.digest(ranges)

    def samples(self, addresses: Sequence[int], size: int) -> list[int]:
        return _native.sample_digests(addresses, size)
