"""The bus of a real device (`ascend`, `cuda`): its pages are reached by its own copies, in the order of streams.

Nothing here reads device memory by its address. What is looked at (content, canary) comes through a window of locked
host memory first. What torch allocates there, and what it does at the moment, is asked of `Pools`
(`engine_patch.device_pools`); so everything but torch itself runs on the simulated vendor libraries too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from coordinator.core.model import Bytes
from engine_patch.bus import Entry, Range
from engine_patch.host_memory import Mapping
from engine_patch.restoring import Job, MemoryFault
from native import _native
from native.digest import LEAF, TreeDigest, portions
from native.protocol import Kind

log = logging.getLogger("vllm.vnpu.memory")

GIB = 1 << 30
WINDOW = 32 * LEAF
"""Locked host memory through which the device's bytes are looked at."""
WIDTH = 256
"""Bytes of a sample. Two of each piece: one somewhere in it, and its last bytes, which a copy writes last."""
PATIENCE_S = 50.0
"""Longest wait for the device within an operation: under the operation's own limit."""
_GOLDEN = 0x9E37_79B9_7F4A_7C15


class Pools(Protocol):
    """The part of torch that is needed: where its tensors on the device go."""

    def allocating(self, kind: Kind, arena: _native.Arena) -> AbstractContextManager[None]: ...

    def live(self, kind: Kind, arena: _native.Arena) -> list[Range]: ...

    def synchronize(self) -> None: ...


class DeviceBus:
    """See `engine_patch.bus.Bus`. Thread-safe."""

    readable = False
    shares = False

    def __init__(self, driver: _native.Driver, pools: Pools, need: Bytes, threads: int = 1) -> None:
        """`need`: the estimated footprint, for which addresses are reserved; `threads` compute digests."""
        self._driver = driver
        self._pools = pools
        self._need = need
        self._threads = threads
        self._turn = threading.Lock()
        self._stream = driver.create_stream()
        self._window = driver.pin(WINDOW)
        self._locked: set[int] = set()

    def room(self, kind: Kind) -> tuple[int, int]:
        """Anywhere: a hint is a trial feature of Ascend, bound to 16 to 24 TiB (docs/ascend.md), and addresses need to
        be the same in this process's life only."""
        size = self._need.weights if kind is Kind.WEIGHTS else self._need.kv
        return 0, max(GIB, -(-size // GIB) * GIB)

    def allocating(self, kind: Kind, arena: _native.Arena) -> AbstractContextManager[None]:
        return self._pools.allocating(kind, arena)

    def live(self, kind: Kind, arena: _native.Arena) -> list[Range]:
        return self._pools.live(kind, arena)

    def lock(self, memory: Mapping) -> None:
        """Where the vendor will not lock it, it copies through a buffer of its own, slower, and the log says so."""
        try:
            self._driver.register_host(memory.address, memory.size)
        except _native.DriverError as error:
            log.warning("host memory is not locked, copies will be slower: %s", error)
        else:
            self._locked.add(memory.address)

    def unlock(self, memory: Mapping) -> None:
        if memory.address in self._locked:
            self._locked.discard(memory.address)
            self._driver.unregister_host(memory.address)

    def quiesce(self) -> None:
        self._pools.synchronize()

    def zero(self, ranges: Sequence[Range]) -> None:
        with self._turn:
            self._driver.zero_async(self._stream, ranges)
            self._wait()

    def protect(self, ranges: Sequence[Range]) -> None:
        raise MemoryFault("a device's pages stay writable", remedy="report this")

    def save(self, entries: Sequence[Entry]) -> None:
        with self._turn:
            self._driver.copy_async(self._stream, entries, "d2h")
            self._wait()

    def start(self, entries: Sequence[Entry], *, beside: bool) -> Job:
        """On a stream of its own, with an event every few MiB. A copy engine takes no processor from a forward pass, so
        `beside` changes nothing."""
        return _native.OrderedCopy(self._driver, entries, "h2d")

    def digest(self, ranges: Sequence[Range]) -> str:
        found = TreeDigest(self._threads)
        for pieces in portions(ranges, WINDOW):
            with self._turn:
                found.add([(self._window, self._fetch(pieces))])
        return found.text()

    def samples(self, addresses: Sequence[int], size: int) -> list[int]:
        found: list[int] = []
        step = WINDOW // (2 * WIDTH)
        for first in range(0, len(addresses), step):
            some = addresses[first : first + step]
            with self._turn:
                self._fetch([place for address in some for place in places(address, size)])
                found += [_native.crc32c(self._window + i * 2 * WIDTH, 2 * WIDTH) for i in range(len(some))]
        return found

    def _fetch(self, pieces: Sequence[Range]) -> int:
        """Bring these pieces of the device into the window, end to end; their bytes together. `_turn` is held."""
        entries, at = [], self._window
        for address, length in pieces:
            entries.append((at, address, length))
            at += length
        self._driver.copy_async(self._stream, entries, "d2h")
        self._wait()
        return at - self._window

    def _wait(self) -> None:
        if not self._driver.wait_stream(self._stream, PATIENCE_S):
            raise MemoryFault(
                f"the device did not finish within {PATIENCE_S:g} s", remedy="see what else runs on it, or report this"
            )


def places(address: int, size: int) -> tuple[Range, Range]:
    """PURE. Where the `size` bytes at `address` are sampled: `WIDTH` bytes at a place that differs from piece to piece,
    and the last `WIDTH`. Raises ValueError where they do not fit."""
    if size < 2 * WIDTH:
        raise ValueError(f"pieces of {size} bytes are sampled by {2 * WIDTH}")
    somewhere = (address // size * _GOLDEN >> 20) % (size // WIDTH - 1) * WIDTH
    return (address + somewhere, WIDTH), (address + size - WIDTH, WIDTH)
