"""torch's memory on a device as far as our pools use it: a caching allocator that asks a pluggable one for whole
segments, by its C functions, as `torch.cuda` does."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Pluggable:
    """As `CUDAPluggableAllocator`: a library and two names in it."""

    def __init__(self, path: str, malloc: str, free: str) -> None:
        library = ctypes.CDLL(path)
        self.malloc, self.free = getattr(library, malloc), getattr(library, free)
        self.malloc.restype = ctypes.c_void_p
        self.malloc.argtypes = (ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)
        self.free.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)

    def allocator(self) -> Pluggable:
        return self


class Torch:
    """The part of `torch.cuda.memory` that is used."""

    def __init__(self, device: int) -> None:
        self._device = device
        self.segments: list[dict[str, Any]] = []
        self.order: list[str] = []
        self.Allocator = Pluggable
        self.MemPool = lambda allocator: allocator
        self._pool: Pluggable | None = None

    @contextmanager
    def use_mem_pool(self, pool: Pluggable) -> Iterator[None]:
        self._pool = pool
        yield
        self._pool = None

    def memory_snapshot(self) -> list[dict[str, Any]]:
        return self.segments

    def empty_cache(self) -> None:
        self.order.append("empty")

    def synchronize(self) -> None:
        self.order.append("synchronize")

    def tensor(self, size: int, segment: int = 0) -> int:
        """Address; `segment`: how much torch asks the allocator for."""
        assert self._pool is not None
        address = self._pool.malloc(segment or size, self._device, None)
        if address is None:
            raise MemoryError("out of device memory")
        blocks = [{"size": size, "state": "active_allocated"}]
        if segment > size:
            blocks.append({"size": segment - size, "state": "inactive"})
        self.segments.append({"address": address, "blocks": blocks})
        return int(address)
