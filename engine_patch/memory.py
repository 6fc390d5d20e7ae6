"""The memory hands of one rank: weights and KV in device pages at fixed addresses, the host master, and what moves
between them. Runs in the worker process, next to the model; knows the daemon and the driver, not vLLM.

Order of life: `admit` (pages for the estimate), `allocating` twice (weights, then KV land in their arenas) with `trim`
after each, `seal` (host master), then `offload` and `restore` in turn.
"""

from __future__ import annotations

import functools
import logging
import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager

from coordinator.core.model import Bytes, Step
from engine_patch.bus import Bus, Range
from engine_patch.common_pages import CommonPages
from engine_patch.elsewhere import Elsewhere, Nowhere, bring_back
from engine_patch.left_behind import LeftBehind
from engine_patch.lent_view import LentView
from engine_patch.master import CALL_S, Master
from engine_patch.partners import Apart, Partners
from engine_patch.pieces import Pieces
from engine_patch.region import Region, drop_both, layout, map_both
from engine_patch.restoring import Cancelled, MemoryFault, Restoring
from engine_patch.saved_kv import SavedKv
from engine_patch.stages import Entry, Owners
from engine_patch.stopwatch import Stopwatch
from native import _native
from native.client import Client
from native.link import DaemonRefused
from native.listener import Listener
from native.protocol import Code, Kind
from transfer.netloader.borrower import Borrower
from transfer.netloader.guard import Guard
from transfer.netloader.ways import Loan
from transfer.netloader.wire import Lent

log = logging.getLogger("vllm.vnpu.memory")

SPILL = 0.01
"""Share of the weights that may lie outside device pages."""


class Hands:
    """See the module. Not thread-safe, but for `spare`: the worker's one thread calls it."""

    def __init__(
        self,
        driver: _native.Driver,
        client: Client,
        device: str,
        chunk: int,
        bus: Bus,
        *,
        kv_keep: int | None = None,
        share: bool = True,
    ) -> None:
        """`device`: the daemon's name of it; `chunk`: its chunk size; `bus`: how its bytes are reached.

        `kv_keep`: bytes of KV that will be saved at most, as far as is known; None: all of it. More is saved all the
        same, if it has to be and the node's budget allows it. `share`: weights may lie in another engine's pages."""
        self.driver, self.client, self.bus = driver, client, bus
        self.weights = Region(driver, client, device, Kind.WEIGHTS, chunk, *bus.room(Kind.WEIGHTS))
        self.kv = Region(driver, client, device, Kind.KV, chunk, *bus.room(Kind.KV))
        self._weight_chunks: tuple[int, ...] = ()
        self._kv_chunks: tuple[int, ...] = ()
        self._pieces = Pieces(bus, self.weights.base, chunk)
        self._left = LeftBehind(self._pieces)
        self._restoring: Restoring | None = None
        self._master = Master(client, bus)
        self._saved = SavedKv(client, bus, kv_keep)
        self.readers = Guard()
        """Other engines read these weights (Netloader) inside it, where `at` says."""
        self._read_pages = True
        self._turn = threading.Lock()
        """Held while pages or the master come or go."""
        self.partners: Partners = Apart()
        self.elsewhere: Elsewhere = Nowhere()
        self.common = CommonPages(client, bus, self.weights, allowed=share)
        self.used = False
        """Set by whoever runs requests on the sealed weights."""
        self.borrower = Borrower(client)
        """What is mapped here of others' weights, while this engine's come from them."""
        self._view = LentView(client, self.weights)
        self.digest = ""
        self.resident = True

    @property
    def copied_out(self) -> int:
        """Bytes of weights that the last offload had to copy to a new master, because there was none any more."""
        return self._master.copied_out

    @property
    def held(self) -> Bytes:
        return Bytes(weights=self.weights.bytes + self.partners.bytes, kv=self.kv.bytes)

    @property
    def need(self) -> Bytes:
        """Of a device where nobody else has these weights, once they are sealed."""
        weights = max(self.weights.bytes, len(self._weight_chunks) * self.weights.chunk)
        return Bytes(weights=weights + self.partners.bytes, kv=self.kv.bytes)

    # ---- start-up

    def admit(self, estimate: Bytes, timeout_s: float) -> None:
        """Map zeroed pages for the estimated footprint; from now on the daemon is heard. Raises as `Region.map`."""
        for region, size in ((self.weights, estimate.weights), (self.kv, estimate.kv)):
            region.populate(region.arena, size, timeout_s)
        Listener(self.client, self.borrower.let_go, self.spare).start()

    @contextmanager
    def allocating(self, region: Region) -> Iterator[None]:
        """Within it, what torch (and oneDNN) allocates on the device lands in `region`. Raises as `Bus.allocating`."""
        with self.bus.allocating(region.kind, region.arena):
            yield

    def live(self, region: Region) -> list[Range]:
        """Tensors that live in `region`, as (offset, length), by offset."""
        starts = [(arena, arena.base - region.base) for arena in region.arenas]
        return [(low + at, size) for arena, low in starts for at, size in self.bus.live(region.kind, arena)]

    def trim(self, region: Region) -> None:
        """Give back the chunks that no live block touches, and check that hardly anything was spilled.

        Raises:
            MemoryFault: more than a hundredth lies outside device pages: the estimate was too low.
        """
        arena = region.arena
        if region.spilled_bytes > SPILL * region.live_bytes:
            raise MemoryFault(
                f"{region.spilled_bytes} bytes of {region.kind} did not fit into the {region.bytes} bytes estimated",
                remedy="store the checkpoint as safetensors in the type it is computed in, or report this model",
            )
        log.info(
            "%s: %d bytes in %d blocks, at most %d while allocating, of %d estimated; %d outside",
            region.kind,
            region.live_bytes,
            len(region.blocks()),
            arena.peak_bytes,
            region.bytes,
            region.spilled_bytes,
        )
        used = region.touched(self.live(region))
        for each in region.arenas:
            each.trim()
        region.drop([i for i in region.indices if i not in used], CALL_S)

    def move_in(self) -> None:
        """After `trim`: pages that are held take the place of the weights' own. Raises as `CommonPages.move_in`."""
        self.common.move_in(CALL_S)

    def unchanged(self) -> bool:
        """Whether the weights are what was sealed: one pass over the bytes."""
        return self.digest.startswith(f"{self.content()}:")

    def seal(self, owners: Owners | None = None) -> str:
        """Make the host master of the weights, or share the one that another engine of equal content has made, and
        the buffer for saved KV. Returns the digest, which names content and layout. `owners` says in which stages
        weights shall come back; None: in one.

        Raises:
            DaemonRefused: no host memory left in the node's budget.
            DaemonUnavailable: the daemon is away or silent.
        """
        with self._turn:
            return self._seal(owners or Owners())

    def _seal(self, owners: Owners) -> str:
        self._weight_chunks, self._kv_chunks = self.weights.indices, self.kv.indices
        self.bus.quiesce()
        self.digest = self.common.joined or self._digest()
        self._master.make(self.digest, self.weights.ranges(self._weight_chunks))
        self._pieces.seal(self._weight_chunks, self.live(self.weights), owners)
        self._saved.reserve(self.kv.bytes, self.kv.chunk)
        return self.digest

    def _digest(self) -> str:
        self.bus.zero(self.weights.holes(self.live(self.weights)))  # so that equal models have equal images
        return f"{self.content()}:{layout(self._weight_chunks)}"

    def at(self, address: int) -> int:
        """Where what belongs at `address` can be read now: there, or in the host master. Good within `readers`.
        Neighbours in the weights' region are neighbours in the master.

        From the first offload on it is the master, also while the pages are filled again, until the master is let go
        of (`spare`): so a restore need not wait for readers.
        """
        offset = self._offset(address)
        if self._read_pages or offset is None:
            return address
        if self._master.memory is None:
            raise MemoryFault(f"{address:#x} has no host master", remedy="report this")
        return self._master.memory.address + offset

    def lend(self) -> Loan | None:
        """What another process of this node may map of the sealed weights: the host master, so that a switch here need
        not wait for it; the pages, where the master was let go of. None: nothing just now. Thread-safe.

        Raises:
            DaemonError: the daemon is away, or refuses.
        """
        with self._turn:
            if self._master.memory is not None:
                return Loan(Lent(master=self.digest), self.place)
            if not self.digest or not self.resident or not self.settled or self.common.joined:
                return None
            return Loan(Lent(self._view.now()), self.place)

    @contextmanager
    def staying(self) -> Iterator[bool]:
        """Within it pages neither come nor go. Whether all of them are here. Thread-safe."""
        with self._turn:
            yield self.resident and self.settled

    def place(self, address: int, length: int) -> int | None:
        """Where these bytes, as `at` names them, lie in what is lent; None: nowhere."""
        master = self._master.memory
        if master is not None and 0 <= address - master.address <= master.size - length:
            return address - master.address
        return self._offset(address)

    def _offset(self, address: int) -> int | None:
        """Where an address lies in the weights, their chunks laid end to end; None: not in device pages."""
        index, within = divmod(address - self.weights.base, self.weights.chunk)
        slot = bisect_left(self._weight_chunks, index)
        return slot * self.weights.chunk + within if self._weight_chunks[slot : slot + 1] == (index,) else None

    def _read_from(self, *, pages: bool) -> None:
        """Readers who are inside finish with the other place, or are cut off. Where there is no other, nobody reads."""
        if not self.readers.close():
            raise MemoryFault("a client of these weights does not let go", remedy="report this")
        self._read_pages = pages
        if pages or self._master.memory is not None:
            self.readers.open()

    def spare(self, digest: str) -> None:
        """The daemon needs host memory: let go of the master, if the pages are here. They fill a new one before they
        leave, where it was evicted. Any thread may call it; waits for what is under way.

        Raises:
            DaemonUnavailable: the daemon is away or silent; it is let go of all the same.
        """
        with self._turn:
            if not self.resident or not self.settled or self._master.memory is None or digest != self.digest:
                return
            self._read_from(pages=True)
            log.info("the host master is let go of: the node's memory for masters is short")
            self._master.let_go(digest)

    # ---- switches

    def offload(self, keep: Sequence[Range]) -> tuple[int, tuple[Step, ...]]:
        """Save the ranges in `keep`, unmap everything. Returns bytes saved, and steps. Where the master was let go of
        and evicted (`spare`), the weights are copied out first, or dropped: no room, and another engine has them.

        Raises:
            DaemonRefused: NO_SPACE: there is no host memory to keep the weights or the KV in; nothing was unmapped.
            DaemonUnavailable: the daemon is away or silent; memory is unmapped here, or nothing was.
        """
        watch = Stopwatch()
        with self._turn:
            self.bus.quiesce()
            self._master.copied_out = 0
            if self._master.memory is None:
                with watch.step("master"):
                    self._keep_weights()
            if self.used and self.partners.alone and self.common.unproven(self.digest):
                with watch.step("still"):
                    self.common.prove(self.unchanged())
            with watch.step("save_kv"):
                saved = self._saved.save(keep)
            with watch.step("unmap"):
                self._read_from(pages=False)
                self._drop(self._left.leave(whole=self.settled))
        return saved, tuple(watch.steps)

    def _keep_weights(self) -> None:
        """Raises as `Master.make`: they can be had from nobody else either."""
        try:
            self._master.make(self.digest, self.weights.ranges(self._weight_chunks))
        except DaemonRefused as refused:
            if refused.code is not Code.NO_SPACE:
                raise
            self.elsewhere.withdraw()
            if not self.elsewhere.known():
                self.elsewhere.serve()
                raise
            log.warning("the weights are dropped, another engine has them: %s", refused)

    def drop(self) -> None:
        """Unmap whatever is mapped and give it back, after an end of the copy under way; what was saved stays saved."""
        if self._restoring is not None:
            self._restoring.cancel()  # so that nobody who has the turn waits for it
        with self._turn:
            self._left.forget()
            if self._master.memory is None:
                self.elsewhere.withdraw()
                self._read_from(pages=False)
            self._drop()

    def _drop(self, left: str = "") -> None:
        self.resident = False
        if self._restoring is not None:
            self._restoring.cancel()
            self._restoring = None
        self.partners.part()
        self.common.part(CALL_S)
        drop_both(self.weights, self.kv, CALL_S, left)

    def restore(self) -> tuple[int, tuple[Step, ...]]:
        """`begin` and `settle` in one. Returns bytes copied, and steps."""
        begun = self.begin(beside=False)
        moved, settled = self.settle()
        return moved, (*begun, *settled)

    def begin(self, *, beside: bool = True) -> tuple[Step, ...]:
        """Map, and start to copy weights from the master and KV from the buffer. What needs bytes of a stage waits for
        it (`await_stage`), and `settle` for the end. `beside`: a forward pass will run meanwhile. Returns steps.

        Raises:
            DaemonRefused: no pages; call `drop` to undo.
            MemoryFault: the weights were dropped, and nobody gives them back.
        """
        watch = Stopwatch()
        with self._turn, self.partners.meeting(watch):
            with watch.step("map"):
                still = self._map()
            with watch.step("recall"):
                still = self._left.confirm(still)
            if self._master.memory is None:
                still = self._without_master(still, watch)
            start = functools.partial(self.bus.start, beside=beside)
            self._restoring = Restoring(start, self._entries(still), self._pieces.check)
            self.resident = True
        return tuple(watch.steps)

    def settle(self) -> tuple[int, tuple[Step, ...]]:
        """Until everything is back and was checked; then others may join these weights. Returns bytes copied, and
        steps. Thread-safe.

        Raises:
            MemoryFault: what came back is not what was sealed.
            Cancelled: `drop` was called meanwhile.
        """
        restoring = self._restoring
        if restoring is None:
            raise Cancelled
        if self.partners.alone:
            self.common.ask(self.digest)  # nobody waits meanwhile
        watch = Stopwatch()
        with watch.step("check"):
            restoring.finish()
        with self._turn:
            if self._restoring is not restoring:
                raise Cancelled
            if self.partners.alone:
                self.common.offer(self.digest)
        waited = watch.steps[0].seconds
        return restoring.bytes, (Step("copy", restoring.seconds), Step("check", max(0.0, waited - restoring.seconds)))

    @property
    def settled(self) -> bool:
        """No restore is under way: every gate is open."""
        return self._restoring is None or self._restoring.done

    def await_stage(self, stage: int) -> None:
        """Until the bytes of this stage, and of those before, are back and were checked. Raises as `settle`."""
        if self._restoring is not None:
            self._restoring.await_stage(stage)

    def _map(self) -> Set[int]:
        """Weights and KV; returns indices of the chunks of weights that are said to hold what was left there."""
        if self.partners.alone and self.common.join(self.digest, self._weight_chunks, CALL_S):
            self.kv.map(self._kv_chunks, CALL_S)
            return frozenset()
        # The master is an image of these chunks, whole, and no gate opens before its bytes are there.
        return map_both(self.weights, self.kv, (self._weight_chunks, self._kv_chunks), CALL_S, self._left.name)

    def _without_master(self, still: Set[int], watch: Stopwatch) -> Set[int]:
        """The weights were dropped: pages hold them still, somebody made a master since, or another engine has them.
        Returns which chunks have theirs."""
        there = self.common.joined or still == frozenset(self._weight_chunks)
        if not there and not self._master.open(self.digest):
            with watch.step("fetch"):
                self.bus.zero(self.weights.holes(self.live(self.weights)))
                bring_back(self.elsewhere, self.digest, self.content)
            still = frozenset(self._weight_chunks)
        self._read_from(pages=self._master.memory is None)
        self.elsewhere.serve()
        return still

    def _entries(self, still: Set[int]) -> list[list[Entry]]:
        """What is copied back in each stage: saved KV first, a forward pass needs it from its first layer on."""
        if self.common.joined:
            return [self._saved.entries, *([] for _ in self._pieces.stages[1:])]
        master = self._master.memory
        first, *later = self._pieces.entries(master.address if master is not None else 0, still)
        return [self._saved.entries + first, *later]

    def content(self) -> str:
        """Digest of the weights as they lie in device pages now."""
        return self.bus.digest(self.weights.ranges(self._weight_chunks))


def denied(refused: DaemonRefused) -> bool:
    """Whether a refusal means: no pages now (undo, stay offloaded), and not: something is wrong."""
    return refused.code in (Code.NO_SPACE, Code.TIMEOUT, Code.FAILED)
