"""How one device's bytes are reached: the one type in which host memory and a real device differ.

The host's pages are this process's own memory, so threads copy them and the processor looks at them. A device's pages
are reached by its own copies alone: on streams, from and to locked host memory. `Hands` knows neither; it is told by
a `Bus` (`engine_patch.host_bus`, `engine_patch.device_bus`). Addresses, lengths and offsets are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from engine_patch.host_memory import Mapping
from engine_patch.restoring import Job
from native._native import Arena
from native.protocol import Kind

Range = tuple[int, int]
"""Address and length."""
Entry = tuple[int, int, int]
"""Destination, source, length."""


class Bus(Protocol):
    """Of one device. Calls block until their work is done, except `start`; the GIL is free meanwhile."""

    readable: bool
    """Whether this process can read the pages by their address."""
    shares: bool
    """Whether weights may lie in the pages of another engine: then `protect` works."""

    def room(self, kind: Kind) -> tuple[int, int]:
        """Where to reserve addresses for this kind (0: wherever the driver likes), and how many bytes."""
        ...

    def allocating(self, kind: Kind, arena: Arena) -> AbstractContextManager[None]:
        """Within it, what the framework allocates on the device lands in `arena`. Raises MemoryFault where nothing can
        be routed."""
        ...

    def live(self, kind: Kind, arena: Arena) -> list[Range]:
        """Tensors that live in the arena, as (offset, length), by offset: on a device the framework keeps several in
        one block."""
        ...

    def lock(self, memory: Mapping) -> None:
        """The device will copy from and to this memory: make that as fast as it can be."""
        ...

    def unlock(self, memory: Mapping) -> None:
        """Before it is unmapped. What was never locked is passed over."""
        ...

    def quiesce(self) -> None:
        """Until nothing that was given to the device before still uses its pages."""
        ...

    def zero(self, ranges: Sequence[Range]) -> None:
        """Zero these ranges of the device."""
        ...

    def protect(self, ranges: Sequence[Range]) -> None:
        """Whoever writes to these pages in this process ends it, until they are unmapped; reads go on meanwhile. Raises
        MemoryFault where that cannot be done."""
        ...

    def save(self, entries: Sequence[Entry]) -> None:
        """Copy from the device to host memory. Raises ValueError or DriverError where entries overlap."""
        ...

    def start(self, entries: Sequence[Entry], *, beside: bool) -> Job:
        """Copy from host memory to the device, in order, in the background. `beside`: a forward pass runs meanwhile."""
        ...

    def digest(self, ranges: Sequence[Range]) -> str:
        """Content digest of these ranges of the device (`native.digest`)."""
        ...

    def samples(self, addresses: Sequence[int], size: int) -> list[int]:
        """For the `size` bytes at each address of the device, a digest of samples; the same places at each call."""
        ...
