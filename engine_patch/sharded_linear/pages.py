"""The carrier for ranks that share host memory: each layer's processed weights lie in its owner's device pages, and the
others map those pages read-only, as views through the node daemon. No layer waits for pages: a kernel cannot tell, and
it need not be one for ordinary tensors. What oneDNN packs lies in the arena too (`Hands.allocating`).

For that every rank processes every layer at load, with the same allocations in the same order, into an arena of the
layer's owner; so equal offsets hold equal bytes, which the ranks prove to one another by digests. Then a rank gives
back what it does not own, and maps the owners' pages in its place.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from engine_patch.memory import Hands
from engine_patch.region import Range, Region
from engine_patch.sharded_linear.group import Group, OutOfStep
from engine_patch.sharded_linear.series import Unshareable
from native import _native
from native._native import Arena
from native.client import View
from native.protocol import Kind

log = logging.getLogger("vllm.vnpu.sharded")

SHARED_AT = 0x3000_0000_0000
SPAN = 1 << 37
"""Address space for what one rank owns."""
CALL_S = 50.0


class Layer(msgspec.Struct, frozen=True):
    """What one layer became: blocks of its owner's arena, and their digest."""

    name: str
    owner: int
    blocks: tuple[Range, ...]
    digest: str


class Offer(msgspec.Struct, frozen=True):
    """A rank's pages, or that it has none now (`here` false). View 0: it owns nothing."""

    here: bool
    view: int = 0


_layers = msgspec.msgpack.Decoder(tuple[Layer, ...])
_offer = msgspec.msgpack.Decoder(Offer)
_encode = msgspec.msgpack.Encoder().encode


class Pages:
    """One rank's end. Called from the worker's main thread."""

    def __init__(self, hands: Hands, group: Group, engine: str) -> None:
        """What this rank owns lies in the annex of `hands.weights`."""
        self._driver, self._client, self._bus = hands.driver, hands.client, hands.bus
        self._weights = weights = hands.weights
        self._group, self._engine = group, engine
        self._theirs = {
            rank: Region(
                hands.driver,
                hands.client,
                weights.device,
                Kind.WEIGHTS,
                weights.chunk,
                SHARED_AT + rank * SPAN,
                SPAN,
            )
            for rank in range(group.size)
            if rank != group.me
        }
        self._layers: list[Layer] = []
        self._used: dict[int, tuple[int, ...]] = {}
        self._open: dict[int, tuple[View, list[int], list[int]]] = {}
        self._owed: list[int] = []

    # ---- loading

    @contextmanager
    def placing(self, name: str, owner: int, room: int) -> Iterator[Arena]:
        """While this layer is processed, what is allocated lands in its owner's arena; `room`: bytes it may take.

        Raises:
            Unshareable: it did not fit, or there are more ranks than arenas.
            DaemonRefused: no pages, or not so many were granted.
        """
        region, arena = self._of(owner)
        region.populate(arena, arena.top + room, CALL_S)
        before = set(arena.blocks())
        try:
            _native.activate(arena)
        except RuntimeError as error:
            raise Unshareable(f"{self._group.size} ranks: {error}", remedy="share by carrier: broadcast") from None
        try:
            yield arena
        finally:
            _native.activate(self._weights.arena)
        if arena.spilled_bytes:
            raise Unshareable(f"{name}: processing it takes over {room} bytes", remedy="leave it out, and report this")
        blocks = tuple(sorted(set(arena.blocks()) - before))
        ranges = [(arena.base + at, length) for at, length in blocks]
        self._layers.append(Layer(name, owner, blocks, self._bus.digest(ranges)))

    def loaded(self) -> None:
        """All layers were placed: prove that all ranks hold the same, give back what others own.

        Raises:
            Unshareable: the ranks' weights differ, and in which layer.
            OutOfStep: a rank did not come.
        """
        told = self._group.exchange(_encode(tuple(self._layers)), "digests of shared layers")
        for rank, text in enumerate(told):
            for mine, other in zip(self._layers, _layers.decode(text), strict=False):
                if mine != other:
                    raise Unshareable(
                        f"{mine.name}: ranks {self._group.me} and {rank} do not hold the same after processing",
                        remedy="leave it out of sharded_linear, or share by carrier: broadcast",
                    )
        for rank in range(self._group.size):
            region, arena = self._of(rank)
            self._used[rank] = tuple(region.first(arena) + i for i in arena.chunks_in_use())
            if rank != self._group.me:
                region.drop(region.indices, CALL_S)
        log.info(
            "%d layers are shared with %d ranks: %d bytes here, %d of the others'",
            len(self._layers),
            self._group.size - 1,
            self.own_bytes,
            sum(len(used) for used in self._used.values()) * self._weights.chunk - self.own_bytes,
        )

    @property
    def own_bytes(self) -> int:
        """Of shared layers, in this rank's pages; whole chunks."""
        return len(self._used[self._group.me]) * self._weights.chunk

    # ---- switches

    def meet(self, here: bool) -> bool:
        """Every rank's pages are mapped, or not (`here`); where all are, map those of the others. Returns whether.

        Raises:
            OutOfStep: a rank did not come.
            DaemonRefused: a view is gone already: its owner is.
        """
        mine = self._used[self._group.me]
        view = (
            self._client.offer_view(self._weights.device, self._weights.ids(mine), self._engine) if here and mine else 0
        )
        offers = [_offer.decode(text) for text in self._group.exchange(_encode(Offer(here, view)), "pages")]
        if not all(offer.here for offer in offers):
            return False
        for rank, offer in enumerate(offers):
            if rank != self._group.me and offer.view:
                self._map(rank, offer.view)
        return True

    def part(self) -> None:
        """Unmap the others' pages. Idempotent. Raises DaemonUnavailable: unmapped, and to be told again."""
        while self._open:
            _, (view, addresses, handles) = self._open.popitem()
            self._driver.unmap_many(addresses)
            for handle in handles:
                self._driver.destroy(handle)
            self._owed.append(view.id)
        while self._owed:
            self._client.close_view(self._owed[-1])
            self._owed.pop()

    def _map(self, rank: int, number: int) -> None:
        view = self._client.open_view(number, CALL_S)
        region = self._theirs[rank]
        handles: list[int] = []
        try:
            if len(view.chunks) != len(self._used[rank]) or any(c.size != region.chunk for c in view.chunks):
                raise OutOfStep(f"rank {rank} offers {len(view.chunks)} chunks of another size", remedy="report this")
            handles += [self._driver.import_handle(chunk.shareable, chunk.size) for chunk in view.chunks]
            addresses = [region.base + i * region.chunk for i in self._used[rank]]
            self._driver.map_many(list(zip(addresses, handles, strict=True)), writable=False)
        except BaseException:
            for handle in handles:
                self._driver.destroy(handle)
            self._client.close_view(number)
            raise
        finally:
            for chunk in view.chunks:
                chunk.close()
        self._open[rank] = view, addresses, handles

    def _of(self, owner: int) -> tuple[Region, Arena]:
        if owner == self._group.me:
            return self._weights, self._weights.annex
        return self._theirs[owner], self._theirs[owner].arena
