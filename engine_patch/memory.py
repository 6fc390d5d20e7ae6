"""The memory hands of one rank: weights and KV in device pages at fixed addresses, the host master, and what moves
between them. Runs in the worker process, next to the model; knows the daemon and the driver, not vLLM.

Order of life: `admit` (pages for the estimate), `allocating` twice (weights, then KV land in their arenas) with `trim`
after each, `seal` (host master), then `offload` and `restore` in turn.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from coordinator.core.model import Bytes, Step
from coordinator.errors import VnpuError
from engine_patch.copier import Copier
from engine_patch.host_memory import Mapping, close_master, new_master, open_master
from engine_patch.kv_blocks import gaps
from engine_patch.region import Region
from native import _native
from native.client import Client, DaemonRefused
from native.listener import Listener
from native.protocol import Code, Kind

log = logging.getLogger("vllm.vnpu.memory")

WEIGHTS_AT = 0x2000_0000_0000
KV_AT = 0x2800_0000_0000
RESERVED = 1 << 40
"""Address space of each of the two regions: nothing is mapped there that is not needed."""
SPILL = 0.01
"""Share of the weights that may lie outside device pages."""
CALL_S = 50.0
"""Longest wait for the daemon within an operation: under the operation's own limit."""
FILL_S = 120.0
FILLS = 3
"""How often a master is filled and found gone again (the daemon restarts) before the engine gives up."""

Range = tuple[int, int]
"""Address and length, in bytes."""


class MemoryFault(VnpuError):
    """The engine's memory is not what it must be."""


class Stopwatch:
    """Names and times the steps of one operation."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.steps: list[Step] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = self._clock()
        try:
            yield
        finally:
            self.steps.append(Step(name, self._clock() - start))


class Hands:
    """See the module. Not thread-safe, but for `spare`: the worker's one thread calls it."""

    def __init__(self, driver: _native.Driver, client: Client, device: str, chunk: int, copier: Copier) -> None:
        self._client = client
        self._copier = copier
        self.weights = Region(driver, client, device, Kind.WEIGHTS, chunk, WEIGHTS_AT, RESERVED)
        self.kv = Region(driver, client, device, Kind.KV, chunk, KV_AT, RESERVED)
        self._weight_chunks: tuple[int, ...] = ()
        self._kv_chunks: tuple[int, ...] = ()
        self._samples: tuple[int, ...] = ()
        self._master: Mapping | None = None
        self._buffer: Mapping | None = None
        self._saved: list[tuple[int, int, int]] = []
        self._turn = threading.Lock()
        """Held while pages or the master come or go."""
        self.digest = ""
        self.resident = True
        self.copied_out = 0
        """Bytes of weights that the last offload had to copy to a new master, because there was none any more."""

    @property
    def held(self) -> Bytes:
        return Bytes(weights=self.weights.bytes, kv=self.kv.bytes)

    # ---- start-up

    def admit(self, estimate: Bytes, timeout_s: float) -> None:
        """Map zeroed pages for the estimated footprint; from now on the daemon is heard. Raises as `Region.map`."""
        for region, size in ((self.weights, estimate.weights), (self.kv, estimate.kv)):
            region.map(range(size // region.chunk), timeout_s)
            region.arena.grow(size)
            for address, length in region.ranges(region.indices):
                ctypes.memset(address, 0, length)
        Listener(self._client, spare=self.spare).start()

    @contextmanager
    def allocating(self, region: Region) -> Iterator[None]:
        """Within it, what torch and oneDNN allocate in this process (64 KiB and more) lands in `region`."""
        if not _native.install_hook():
            raise MemoryFault("there is no allocator to hook: libtorch is not loaded", remedy="report your versions")
        _native.activate(region.arena)
        try:
            yield
        finally:
            _native.activate(None)

    def trim(self, region: Region) -> None:
        """Give back the chunks that no live block touches, and check that hardly anything was spilled.

        Raises:
            MemoryFault: more than a hundredth lies outside device pages: the estimate was too low.
        """
        arena = region.arena
        if arena.spilled_bytes > SPILL * arena.live_bytes:
            raise MemoryFault(
                f"{arena.spilled_bytes} bytes of {region.kind} did not fit into the {arena.capacity} bytes estimated",
                remedy="store the checkpoint as safetensors in the type it is computed in, or report this model",
            )
        log.info(
            "%s: %d bytes in %d blocks, at most %d while allocating, of %d estimated; %d outside",
            region.kind,
            arena.live_bytes,
            arena.live_blocks,
            arena.peak_bytes,
            arena.capacity,
            arena.spilled_bytes,
        )
        used = set(arena.chunks_in_use())
        arena.trim()
        region.drop([i for i in region.indices if i not in used], CALL_S)

    def seal(self) -> str:
        """Make the host master of the weights, or share the one that another engine of equal content has made, and
        the buffer for saved KV. Returns the digest, which names content and layout.

        Raises:
            DaemonRefused: no host memory left in the node's budget.
            DaemonUnavailable: the daemon is away or silent.
        """
        with self._turn:
            return self._seal()

    def _seal(self) -> str:
        self._weight_chunks, self._kv_chunks = self.weights.indices, self.kv.indices
        self._clear_holes()
        layout = hashlib.sha256(repr(self._weight_chunks).encode()).hexdigest()[:16]
        self.digest = f"{self.content()}:{layout}"
        self._master = self._some_master()
        self._samples = tuple(self._sample(i) for i in self._weight_chunks)
        self._buffer = Mapping(max(self.kv.bytes, self.kv.chunk))
        self._client.report_host(self._buffer.size)
        return self.digest

    def _clear_holes(self) -> None:
        """Zero what no live block covers, so that equal models have equal images."""
        base, chunk = self.weights.base, self.weights.chunk
        kept = set(self._weight_chunks)
        end = (max(kept, default=-1) + 1) * chunk
        for start, length in gaps(self.weights.arena.extents(), end):
            for i in range(start // chunk, -(-(start + length) // chunk)):
                low, high = max(start, i * chunk), min(start + length, (i + 1) * chunk)
                if i in kept:
                    ctypes.memset(base + low, 0, high - low)

    def _some_master(self) -> Mapping:
        """The daemon's, or else a new one out of the pages that are mapped."""
        for _ in range(FILLS):
            if (master := open_master(self._client, self.digest, CALL_S)) is not None:
                return master
            self._fill_master()
        raise MemoryFault("the host master that was just sealed is gone", remedy="see the daemon's log")

    def _fill_master(self) -> None:
        ranges = self.weights.ranges(self._weight_chunks)
        size = sum(length for _, length in ranges)
        filled = new_master(self._client, size, FILL_S)
        try:
            self._copier.copy([(to, at, length) for at, to, length in _paired(ranges, filled.address)])
        finally:
            filled.close()
        self.copied_out += size
        try:
            self._client.seal_master(self.digest)
        except DaemonRefused as refused:
            if refused.code is not Code.NOT_FOUND:  # that: the daemon was restarted meanwhile
                raise
            log.warning("the host master was lost before it was sealed: %s", refused)

    def spare(self, digest: str) -> None:
        """The daemon needs host memory: let go of the master, if the pages are here. They fill a new one before they
        leave, where it was evicted. Any thread may call it; waits for what is under way.

        Raises:
            DaemonUnavailable: the daemon is away or silent; it is let go of all the same.
        """
        with self._turn:
            master = self._master
            if not self.resident or master is None or digest != self.digest:
                return
            self._master = None
            log.info("the host master is let go of: the node's memory for masters is short")
            close_master(self._client, digest, master, CALL_S)

    # ---- switches

    def offload(self, keep: Sequence[Range]) -> tuple[int, tuple[Step, ...]]:
        """Save the ranges in `keep`, unmap everything. Returns bytes saved, and steps. Where the master was let go of
        and evicted (`spare`), the weights are copied out first.

        Raises:
            DaemonRefused: NO_SPACE: there is no host memory to keep the weights in; nothing was unmapped.
            DaemonUnavailable: the daemon is away or silent; memory is unmapped here, or nothing was.
        """
        watch = Stopwatch()
        with self._turn:
            self.copied_out = 0
            if self._master is None:
                with watch.step("master"):
                    self._master = self._some_master()
            with watch.step("save_kv"):
                saved = self._save(keep)
            with watch.step("unmap"):
                self.drop()
        return saved, tuple(watch.steps)

    def drop(self) -> None:
        """Unmap whatever is mapped and give it back; what was saved stays saved."""
        self.resident = False
        self.weights.drop(self.weights.indices, CALL_S)
        self.kv.drop(self.kv.indices, CALL_S)

    def restore(self) -> tuple[int, tuple[Step, ...]]:
        """Map, copy weights from the master and KV from the buffer, check. Returns bytes copied, and steps.

        Raises:
            DaemonRefused: no pages; call `drop` to undo.
            MemoryFault: what came back is not what was sealed.
        """
        watch = Stopwatch()
        with self._turn:
            with watch.step("map"):
                self.weights.map(self._weight_chunks, CALL_S)
                self.kv.map(self._kv_chunks, CALL_S)
            with watch.step("copy"):
                moved = self._copy_back()
            with watch.step("check"):
                self.check()
            self.resident = True
        return moved, tuple(watch.steps)

    def _save(self, keep: Sequence[Range]) -> int:
        if self._buffer is None:
            raise MemoryFault("nothing was sealed yet", remedy="report this")
        self._saved = [(at, to, length) for at, to, length in _paired(keep, self._buffer.address)]
        self._copier.copy([(to, at, length) for at, to, length in self._saved])
        return sum(length for _, length in keep)

    def _copy_back(self) -> int:
        if self._master is None:
            raise MemoryFault("there is no host master", remedy="report this")
        entries = self._saved + _paired(self.weights.ranges(self._weight_chunks), self._master.address)
        self._copier.copy(entries)
        return sum(length for _, _, length in entries)

    def check(self) -> None:
        """The canary: samples of every chunk against those taken when it was sealed. Raises `MemoryFault`."""
        pairs = zip(self._weight_chunks, self._samples, strict=True)
        wrong = [i for i, sample in pairs if self._sample(i) != sample]
        if wrong:
            raise MemoryFault(
                f"{len(wrong)} of {len(self._samples)} chunks of the weights came back wrong, the first is {wrong[0]}",
                remedy="the engine ends and is started again; if this comes back, check the machine's memory",
            )

    def _sample(self, index: int) -> int:
        return _native.sample_digest([(self.weights.base + index * self.weights.chunk, self.weights.chunk)])

    def content(self) -> str:
        """Digest of the weights as they lie in device pages now."""
        return self._copier.digest(self.weights.ranges(self._weight_chunks))


def _paired(ranges: Sequence[Range], address: int) -> list[tuple[int, int, int]]:
    """Each range, with the place it has when all are laid end to end from `address`: (range, place, length)."""
    entries = []
    for start, length in ranges:
        entries.append((start, address, length))
        address += length
    return entries


def denied(refused: DaemonRefused) -> bool:
    """Whether a refusal means: no pages now (undo, stay offloaded), and not: something is wrong."""
    return refused.code in (Code.NO_SPACE, Code.TIMEOUT, Code.FAILED)
