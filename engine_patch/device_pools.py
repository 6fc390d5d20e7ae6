"""torch on a device: its tensors land in an arena of ours, through its pluggable allocator and a pool of its own
(PyTorch, "CUDA semantics", "Using custom memory allocators"; torch-npu has the same under its own names).

The pool calls `vnpu_malloc` and `vnpu_free` of the native module (docs/memory.md). Between them and the tensors stands
torch's caching allocator: it asks for whole segments, puts several tensors into one, and keeps what became free. So
what lives is asked of torch's snapshot, not of the arena.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from engine_patch.bus import Range
from native import _native
from native.protocol import Kind

DEAD = "inactive"
"""The state of a block in torch's snapshot that belongs to no tensor."""


class Memory(Protocol):
    """The part of `torch.cuda.memory` or `torch.npu.memory` that is used, besides the allocator's class."""

    MemPool: Callable[[Any], Any]

    def use_mem_pool(self, pool: Any) -> AbstractContextManager[Any]: ...

    def memory_snapshot(self) -> list[dict[str, Any]]: ...

    def empty_cache(self) -> None: ...


class TorchPools:
    """`engine_patch.device_bus.Pools` over torch: a pool for each kind of memory of one device. Used by one thread."""

    def __init__(self, memory: Memory, allocator: str, synchronize: Callable[[], None], device: int) -> None:
        """`allocator`: the name of the pluggable allocator's class in `memory`; `device`: torch's number of it."""
        self._memory = memory
        self._make = getattr(memory, allocator)
        self._synchronize = synchronize
        self._device = device
        self._allocator: Any = None
        self._pools: dict[Kind, Any] = {}

    @contextmanager
    def allocating(self, kind: Kind, arena: _native.Arena) -> Iterator[None]:
        _native.serve_device(self._device, arena)
        try:
            with self._memory.use_mem_pool(self._pool(kind)):
                yield
            self._synchronize()
            gc.collect()
            self._memory.empty_cache()
        finally:
            _native.serve_device(self._device, None)

    def live(self, kind: Kind, arena: _native.Arena) -> list[Range]:
        found: list[Range] = []
        for segment in self._memory.memory_snapshot():
            offset = segment["address"] - arena.base
            if 0 <= offset < arena.reserved:
                found += _living(segment["blocks"], offset)
        return sorted(found)

    def synchronize(self) -> None:
        self._synchronize()

    def close(self) -> None:
        """Pools first: they call their allocator when they go (pytorch#145168). Idempotent."""
        self._pools.clear()
        gc.collect()
        self._allocator = None

    def _pool(self, kind: Kind) -> Any:
        if self._allocator is None:
            self._allocator = self._make(_native.__file__, "vnpu_malloc", "vnpu_free")
            atexit.register(self.close)
        if kind not in self._pools:
            self._pools[kind] = self._memory.MemPool(self._allocator.allocator())
        return self._pools[kind]


def _living(blocks: list[dict[str, Any]], offset: int) -> Iterator[Range]:
    """PURE. A segment's blocks lie end to end from `offset`."""
    for block in blocks:
        size = int(block["size"])
        if block["state"] != DEAD:
            yield offset, size
        offset += size
