"""The prefill side of a pull, for one rank: what is offered, who reads it, and when the engine gets its blocks back.

Pure: every event comes with the time, and returns what to do. An offer leaves this book *before* its blocks go back to
the engine, and a block's generation rises when its content may change; both are looked at when a reader asks for
confirmation after its last read. So whatever was read from a block that was freed meanwhile is noticed, however the
bytes were moved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from transfer.kv.messages import (
    Answer,
    Closed,
    Confirm,
    Confirmed,
    Done,
    NotYet,
    Open,
    Opened,
    Refused,
    Say,
    Shape,
    Terms,
)
from transfer.kv.plan import PlanRefused, closers, turn_of


class Outcome(StrEnum):
    """How an offer ended: every reader has it; one could not use it; nobody came or went on; we took it back."""

    DELIVERED = "delivered"
    FAILED = "failed"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


class Released(NamedTuple):
    """The engine may have the request's blocks back. Said exactly once for each offer."""

    request: str
    outcome: Outcome


@dataclass
class _Offer:
    blocks: tuple[int, ...]
    generations: tuple[int, ...]
    expires: float
    shape: Shape | None = None
    """Fixed by the first reader."""
    waiting: set[int] = field(default_factory=set)
    """Readers that have not said *done*; empty until the first has spoken."""
    all_ok: bool = True


REMEMBERED = 4096
"""So many ended requests are refused at once; older ones look like requests that were not offered yet."""


class Source:
    """Prefill rank `rank` of `tp`, in the life `epoch` of its engine."""

    def __init__(
        self, epoch: str, tp: int, rank: int, num_kv_heads: int, *, mla: bool = False, terms: Terms | None = None
    ) -> None:
        self._epoch = epoch
        self._tp, self._rank, self._heads, self._mla = tp, rank, num_kv_heads, mla
        self._terms = terms or Terms()
        self._offers: dict[str, _Offer] = {}
        self._later: dict[str, _Offer] = {}
        """Made while the memory comes or goes."""
        self._ended: dict[str, None] = {}
        self._generations: Counter[int] = Counter()
        self._until: float | None = None

    @property
    def idle(self) -> bool:
        """Nothing is offered: the engine may sleep."""
        return not self._offers

    @property
    def offers(self) -> int:
        return len(self._offers)

    @property
    def due(self) -> float | None:
        """When `tick` has something to do next."""
        return min((offer.expires for offer in self._offers.values()), default=None)

    # ---- from the engine

    def offer(self, request: str, blocks: Iterable[int], now: float) -> None:
        """These blocks are whole; hold them. From `drain` to `resume` nobody hears of it: an engine computes before all
        of its memory is back.

        Raises:
            ValueError: the request is offered already: ids are drawn anew for each.
        """
        if request in self._offers or request in self._later or request in self._ended:
            raise ValueError(f"request {request} was offered before: draw an id for each")
        held = tuple(blocks)
        generations = tuple(self._generations[block] for block in held)
        where = self._offers if self._until is None else self._later
        where[request] = _Offer(held, generations, now + self._terms.first_s)

    def freed(self, blocks: Iterable[int]) -> None:
        """The engine gave these blocks to others although they were held, or discarded what is in them."""
        for block in blocks:
            self._generations[block] += 1

    def withdraw(self, request: str) -> list[Released]:
        """The engine wants the blocks back now."""
        known = request in self._offers or request in self._later
        return self._end(request, Outcome.WITHDRAWN) if known else []

    def drain(self, now: float, until: float) -> list[Released]:
        """Before sleep: offers that nobody reads yet end now, the others by `until`."""
        self._until = until
        for offer in self._offers.values():
            offer.expires = min(offer.expires, until) if offer.shape else now
        return self.tick(now)

    def resume(self, now: float) -> None:
        """After waking up: offers that were made meanwhile begin. Idempotent."""
        self._until = None
        for offer in self._later.values():
            offer.expires = now + self._terms.first_s
        self._offers |= self._later
        self._later = {}

    def tick(self, now: float) -> list[Released]:
        """End what nobody has asked for in time."""
        late = [request for request, offer in self._offers.items() if offer.expires <= now]
        outcome = Outcome.EXPIRED if self._until is None else Outcome.WITHDRAWN
        return [released for request in late for released in self._end(request, outcome)]

    # ---- from decode ranks

    def receive(self, say: Say, now: float) -> tuple[Answer, list[Released]]:
        """The answer to a message, and what it ends."""
        released = self.tick(now)
        who = (say.request, say.reader)
        if say.epoch != self._epoch:
            gone = Refused(*who, "this engine was started anew: the blocks are gone")
            return (Closed(*who) if isinstance(say, Done) else gone), released
        offer = self._offers.get(say.request)
        if offer is None and say.request not in self._ended:
            return NotYet(*who), released
        if isinstance(say, Done):
            return Closed(*who), [*released, *(self._done(say, offer) if offer else [])]
        return self._read(say, offer, now), released

    def _read(self, say: Open | Confirm, offer: _Offer | None, now: float) -> Answer:
        if offer is None:
            return Refused(say.request, say.reader, "offered no longer: the blocks were given back")
        if isinstance(say, Open) and (why := self._admit(say, offer)):
            return Refused(say.request, say.reader, why)
        if say.reader not in offer.waiting:
            return Refused(say.request, say.reader, f"decode rank {say.reader} is done, or has nothing to read here")
        expires = now + self._terms.lease_s
        offer.expires = expires if self._until is None else min(expires, self._until)
        if isinstance(say, Open):
            return Opened(say.request, say.reader)
        return Confirmed(say.request, say.reader, self._stale(offer))

    def _stale(self, offer: _Offer) -> tuple[int, ...]:
        held = zip(offer.blocks, offer.generations, strict=True)
        return tuple(at for at, (block, generation) in enumerate(held) if self._generations[block] != generation)

    def _admit(self, say: Open | Done, offer: _Offer) -> str:
        """Fix the shape with the first reader; why not, where it cannot be."""
        shape = say.shape
        if offer.shape is None:
            try:
                offer.waiting = self._readers(say.request, shape)
            except PlanRefused as refused:
                return str(refused)[:300]
            offer.shape = shape
        if offer.shape != shape:
            return f"readers disagree: {offer.shape} and now {shape}"[:300]
        return ""

    def _readers(self, request: str, shape: Shape) -> set[int]:
        sizes = (self._tp, shape.decode_tp, self._heads, shape.units)
        ranks = closers(*sizes, mla=self._mla, turn=turn_of(request))[self._rank]
        return {stage * shape.decode_tp + rank for stage in range(shape.decode_pp) for rank in ranks}

    def _done(self, say: Done, offer: _Offer) -> list[Released]:
        if self._admit(say, offer) or say.reader not in offer.waiting:
            return []
        offer.waiting.discard(say.reader)
        offer.all_ok &= say.ok
        if offer.waiting:
            return []
        return self._end(say.request, Outcome.DELIVERED if offer.all_ok else Outcome.FAILED)

    def _end(self, request: str, outcome: Outcome) -> list[Released]:
        self._offers.pop(request, None)
        self._later.pop(request, None)
        self._ended[request] = None
        if len(self._ended) > REMEMBERED:
            del self._ended[next(iter(self._ended))]
        return [Released(request, outcome)]
