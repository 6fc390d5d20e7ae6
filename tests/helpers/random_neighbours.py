"""What engines of a random node do with pages that they have in common, or left behind: `Neighbours`, the part of
`tests.helpers.random_node` about shared weights and remains.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from coordinator.core.model import Order
from native.fences import Holder
from tests.helpers.brood import Forked
from tests.helpers.in_process import InProcess
from tests.helpers.leader import Granted, Leader, Registered

CHUNKS = 6
ROOM = 1 << 30
DEVICE = "n/0"


@dataclass(eq=False)
class Engine:
    """As the test knows it. `chunks` of its own, with what each is filled with; `views` that it has open; `listens`: it
    does what the daemon asks; `left`: the name of what it left in so many chunks, and whether all must be there."""

    fill: int
    spec: Registered
    puppet: Forked
    listens: bool
    chunks: dict[int, int] = field(default_factory=dict)
    left: tuple[str, int] | None = None
    views: dict[int, Engine] = field(default_factory=dict)
    offered: dict[int, list[int]] = field(default_factory=dict)
    masters: set[str] = field(default_factory=set)

    @property
    def holder(self) -> Holder:
        return Holder(self.spec.holder.engine, self.spec.holder.nonce)


@dataclass(eq=False)
class Offer:
    """Weights that an engine lets others have in the same pages: `chunks` of `owner`, with their fills."""

    owner: Engine
    chunks: dict[int, int]
    sharers: list[Engine] = field(default_factory=list)


class Neighbours:
    """`engines` of one device, and what they share: as the test knows it."""

    leader: Leader
    place: InProcess

    def __init__(self, source: random.Random) -> None:
        self.random = source
        self.engines: list[Engine] = []
        self.offers: dict[str, Offer] = {}
        self._names = 0

    async def _kill(self, engine: Engine) -> None:
        raise NotImplementedError

    async def _revoke(self, engine: Engine) -> None:
        raise NotImplementedError

    def _blind(self, owner: Engine, chunks: Iterable[int]) -> None:
        raise NotImplementedError

    async def _ask(self, engine: Engine, do: str, *args: object) -> object:
        """What must be done."""
        kind, value = await engine.puppet.call(do, *args)
        assert kind == "done", f"{do} {args} of {engine.fill}: {kind} {value}"
        return value

    async def _denied(self, engine: Engine, code: str, do: str, *args: object) -> None:
        kind, value = await engine.puppet.call(do, *args)
        assert kind == "refused", f"{do} {args} of {engine.fill}: {kind} {value}"
        assert isinstance(value, list)
        assert value[0] == code, value

    async def _begin(self, engine: Engine, order: Order, size: int = ROOM) -> Granted:
        fence = await self.leader.grant(engine.spec, order, size)
        await self._ask(engine, "enter", DEVICE, fence.epoch, fence.revision, 30.0)
        return fence

    # ---- shared weights

    @property
    def _free(self) -> int:
        """Chunks that nobody has."""
        return CHUNKS - sum(len(engine.chunks) for engine in self.engines)

    def _own(self, engine: Engine) -> list[int]:
        """Chunks that it got by `map`, and did not inherit."""
        return [chunk for chunk, fill in engine.chunks.items() if fill == engine.fill]

    async def _offer(self, engine: Engine) -> None:
        """A part of what it has, under one of two names: one that is in use already changes nothing."""
        offered = {chunk for offer in self.offers.values() if offer.owner is engine for chunk in offer.chunks}
        rest = [chunk for chunk in self._own(engine) if chunk not in offered]
        if not rest:
            return
        digest = f"weights {self.random.randrange(2)}"
        chunks = rest[: self.random.randrange(1, len(rest) + 1)]
        fence = await self._begin(engine, Order.RESTORE)
        await self._ask(engine, "offer_share", DEVICE, digest, chunks)
        if digest not in self.offers:
            self.offers[digest] = Offer(engine, dict.fromkeys(chunks, engine.fill))
        await self._ask(engine, "leave", DEVICE, fence.epoch, fence.revision)

    async def _join(self, engine: Engine) -> None:
        """With a crash of its process before it has said what it got, sometimes."""
        digest = f"weights {self.random.randrange(2)}"
        offer = self.offers.get(digest)
        if offer is not None and engine in offer.sharers:
            return
        if offer is not None:
            await self._ask(offer.owner, "stats")  # hands back first, where the daemon was restarted
        there = offer is not None and offer.owner is not engine and self._known(offer)
        fence = await self._begin(engine, Order.RESTORE)
        seen = await self._ask(engine, "open_share", DEVICE, digest)
        if offer is None or not there:
            assert seen is None
        else:
            assert seen == [[chunk, fill] for chunk, fill in offer.chunks.items()]
            offer.sharers.append(engine)
        if self.random.random() < 0.1:
            await self._kill(engine)
            return
        await self._ask(engine, "leave", DEVICE, fence.epoch, fence.revision)

    def _known(self, offer: Offer) -> bool:
        """Its pages can be given to others: somebody has handed them back since the daemon was restarted. Who has
        joined has no descriptor that it could hand back."""
        return self.place.node.devices["0"].has(offer.chunks)

    async def _part(self, engine: Engine) -> None:
        """It lets go of what it has joined or inherited."""
        for digest, offer in tuple(self.offers.items()):
            inherited = offer.owner is engine and not set(offer.chunks) <= set(self._own(engine))
            if engine not in offer.sharers and not inherited:
                continue
            await self._revoke(engine)
            fence = await self._begin(engine, Order.OFFLOAD)
            await self._ask(engine, "close_share", DEVICE, digest, list(offer.chunks))
            if inherited:
                await self._given_up(engine, offer.chunks)
            else:
                offer.sharers.remove(engine)
            await self._ask(engine, "leave", DEVICE, fence.epoch, fence.revision)

    async def _given_up(self, engine: Engine, chunks: Iterable[int]) -> None:
        """Its chunks are unmapped, by itself or because it is dead: who shares some has them now."""
        going = set(chunks)
        for digest, offer in tuple(self.offers.items()):
            if offer.owner is engine and going & set(offer.chunks):
                if offer.sharers:
                    self._inherited(offer)
                else:
                    del self.offers[digest]
        for chunk in going:
            engine.chunks.pop(chunk, None)

    def _inherited(self, offer: Offer) -> None:
        """By one of those who shared it: the daemon says which."""
        owner = self.place.node.devices["0"].pool.owner_of(next(iter(offer.chunks)))
        (heir,) = [engine for engine in offer.sharers if owner is not None and engine.holder == owner.holder]
        offer.sharers.remove(heir)
        offer.owner = heir
        heir.chunks |= offer.chunks

    # ---- what the last owner left

    async def _leave_named(self, engine: Engine) -> None:
        """All of its own but what others may share, under a new name; sometimes it is back at once."""
        offered = {chunk for offer in self.offers.values() for chunk in offer.chunks}
        going = [chunk for chunk in self._own(engine) if chunk not in offered]
        if not going:
            return
        await self._revoke(engine)
        fence = await self._begin(engine, Order.OFFLOAD)
        self._names += 1
        engine.left = (f"left {self._names}", len(going))
        await self._ask(engine, "leave_behind", DEVICE, going, engine.left[0])
        await self._given_up(engine, going)
        self._blind(engine, going)
        await self._ask(engine, "leave", DEVICE, fence.epoch, fence.revision)
        if self.random.random() < 0.3:
            assert await self._back(engine) == len(going)

    async def _come_back(self, engine: Engine) -> None:
        """Others may have needed some of it meanwhile, or the daemon has forgotten."""
        if engine.left is not None and engine.left[1] <= self._free:
            await self._back(engine)

    async def _back(self, engine: Engine) -> int:
        """It maps as much again; how many chunks still held what it had left there."""
        assert engine.left is not None
        (content, count), engine.left = engine.left, None
        fence = await self._begin(engine, Order.RESTORE)
        found = await self._ask(engine, "come_back", DEVICE, count, engine.fill, content)
        assert isinstance(found, list)
        engine.chunks |= dict.fromkeys((chunk for chunk, _ in found), engine.fill)
        await self._ask(engine, "leave", DEVICE, fence.epoch, fence.revision)
        return sum(still for _, still in found)
