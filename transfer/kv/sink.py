"""The decode side of pulls, for one rank. Pure: every event comes with the time, and returns what to do.

A pull has a *leg* for each prefill rank that has a part of it: open, fetch layer by layer, confirm, close. A leg is
good only when every byte of it was moved and the prefill rank has confirmed, after the last of them, that the blocks
were still the ones it offered. The engine hears exactly once which blocks are ready and which it must compute itself,
when nothing can be written into any of them any more. Closing goes on behind that until it is answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

import msgspec

from transfer.kv.coverage import Overlap, cells, whole, without
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
from transfer.kv.plan import Pull, closers, heads_of, plan_pull, turn_of


class Wanted(msgspec.Struct, frozen=True):
    """What a rank pulls. `stages`: layers [lo, hi) of this rank that each prefill pipeline stage holds; a prefill rank
    is numbered `stage * prefill_tp + rank`. `cell_bytes`: for each layer, of one unit of one head."""

    request: str
    epoch: str
    prefill_tp: int
    decode_tp: int
    decode_rank: int
    num_kv_heads: int
    units: int
    cell_bytes: tuple[int, ...]
    stages: tuple[tuple[int, int], ...]
    src_block_units: int = 1
    dst_block_units: int = 1
    decode_pp: int = 1
    decode_stage: int = 0
    mla: bool = False

    @property
    def reader(self) -> int:
        """How this rank is called by prefill ranks."""
        return self.decode_stage * self.decode_tp + self.decode_rank


class Send(NamedTuple):
    """To a prefill rank, as well as it goes: what is lost is said again."""

    peer: int
    say: Say


class Fetch(NamedTuple):
    """Read one layer's part; answer with `fetched`, exactly once, whatever happens."""

    request: str
    peer: int
    layer: int
    pulls: tuple[Pull, ...]


class Cancel(NamedTuple):
    """End the fetches of this leg soon; each still answers."""

    request: str
    peer: int


class Finished(NamedTuple):
    """The blocks are the engine's again. Places in the request's block list; the failed ones must be computed."""

    request: str
    ready: tuple[int, ...]
    failed: tuple[int, ...]
    reasons: tuple[str, ...]


Action = Send | Fetch | Cancel | Finished


class _Phase(Enum):
    OPENING = auto()
    FETCHING = auto()
    CONFIRMING = auto()
    CLOSING = auto()
    CLOSED = auto()


@dataclass
class _Leg:
    pulls: tuple[Pull, ...]
    left: list[int]
    """Layers not asked for yet, last one first."""
    heard: float
    said: float
    phase: _Phase = _Phase.OPENING
    flying: set[int] = field(default_factory=set)
    came: set[int] = field(default_factory=set)
    stale: tuple[int, ...] = ()
    good: bool | None = None


@dataclass
class _Book:
    wanted: Wanted
    legs: dict[int, _Leg]
    deadline: float
    reasons: list[str] = field(default_factory=list)
    finished: bool = False

    def say(self, leg: _Leg) -> Say:
        """What the leg's phase has to say, now and again."""
        who = (self.wanted.request, self.wanted.epoch, self.wanted.reader)
        shape = Shape(self.wanted.decode_tp, self.wanted.decode_pp, self.wanted.units)
        if leg.phase is _Phase.CONFIRMING:
            return Confirm(*who)
        return Done(*who, shape, bool(leg.good)) if leg.phase is _Phase.CLOSING else Open(*who, shape)


class Sink:
    """All pulls of one decode rank."""

    def __init__(self, terms: Terms | None = None) -> None:
        self._terms = terms or Terms()
        self._books: dict[str, _Book] = {}

    @property
    def busy(self) -> bool:
        """The engine waits for a block: it may not sleep yet."""
        return any(not book.finished for book in self._books.values())

    @property
    def pulls(self) -> int:
        """Those that are remembered, closing ones too."""
        return len(self._books)

    @property
    def due(self) -> float | None:
        """When `tick` has something to do next."""
        return min((at for book in self._books.values() for at in self._dues(book)), default=None)

    # ---- events

    def begin(self, wanted: Wanted, now: float) -> list[Action]:
        """Pull.

        Raises:
            PlanRefused: sizes that cannot be.
            ValueError: the request is being pulled already.
        """
        if wanted.request in self._books:
            raise ValueError(f"request {wanted.request} is being pulled already")
        book = _Book(wanted, _legs(wanted, now), now + self._terms.limit_s)
        self._books[wanted.request] = book
        actions: list[Action] = []
        for peer, leg in book.legs.items():
            if not leg.pulls:
                leg.phase, leg.good = _Phase.CLOSING, True
            actions.append(Send(peer, book.say(leg)))
        return [*actions, *self._settle(book)]

    def receive(self, peer: int, answer: Answer, now: float) -> list[Action]:
        """An answer of prefill rank `peer`; one that comes late or twice changes nothing."""
        book = self._books.get(answer.request)
        leg = book.legs.get(peer) if book else None
        if book is None or leg is None or answer.reader != book.wanted.reader:
            return []
        if isinstance(answer, NotYet):  # nothing to be glad of: patience goes on running
            return []
        leg.heard = now
        actions: list[Action] = []
        if isinstance(answer, Opened) and leg.phase is _Phase.OPENING:
            leg.phase = _Phase.FETCHING
            actions += self._more(book, peer, leg, now)
        elif isinstance(answer, Confirmed) and leg.phase is _Phase.CONFIRMING:
            leg.stale = answer.stale
            if leg.stale:
                book.reasons.append(f"prefill rank {peer} freed {len(leg.stale)} blocks early")
            actions += self._close(book, peer, leg, now, good=True)
        elif isinstance(answer, Closed) and leg.phase is _Phase.CLOSING:
            leg.phase = _Phase.CLOSED
        elif isinstance(answer, Refused) and leg.good is None:
            actions += self._fail(book, peer, f"prefill rank {peer}: {answer.reason}", now)
        return [*actions, *self._settle(book)]

    def fetched(self, request: str, peer: int, layer: int, moved: int, error: str, now: float) -> list[Action]:
        """A fetch has ended: `moved` bytes are in place, or `error` says what happened. Nothing more will be written.

        Raises:
            ValueError: no such fetch is under way.
        """
        book = self._books.get(request)
        leg = book.legs.get(peer) if book else None
        if book is None or leg is None or layer not in leg.flying:
            raise ValueError(f"no fetch of layer {layer} of {request} from prefill rank {peer} is under way")
        leg.flying.remove(layer)
        due = book.wanted.cell_bytes[layer] * _cells(leg.pulls)
        if not error and moved != due:
            error = f"{moved} bytes of layer {layer} came, {due} were due"
        actions: list[Action] = []
        if leg.good is None:
            if error:
                actions = self._fail(book, peer, f"prefill rank {peer}: {error}", now)
            else:
                leg.came.add(layer)
                actions = self._more(book, peer, leg, now)
        return [*actions, *self._settle(book)]

    def abort(self, request: str, now: float) -> list[Action]:
        """The engine wants the blocks back; `Finished` follows when no write can land any more."""
        book = self._books.get(request)
        return self._fail_all(book, "aborted", now) if book else []

    def abort_all(self, now: float) -> list[Action]:
        """Before sleep."""
        return [action for request in list(self._books) for action in self.abort(request, now)]

    def tick(self, now: float) -> list[Action]:
        """Say again what was not answered; give up what takes too long."""
        return [action for book in list(self._books.values()) for action in self._tick(book, now)]

    # ---- steps

    def _tick(self, book: _Book, now: float) -> list[Action]:
        if now >= book.deadline and not book.finished:
            actions = self._fail_all(book, f"not done within {self._terms.limit_s:g} s", now)
        else:
            actions = []
        for peer, leg in book.legs.items():
            if leg.phase is _Phase.CLOSED:
                continue
            if now >= self._given_up(leg):
                if leg.good is None:
                    actions += self._fail(book, peer, f"prefill rank {peer} is silent", now)
                else:
                    leg.phase = _Phase.CLOSED  # its own lease has ended too
            elif now >= leg.said + self._terms.beat_s:
                leg.said = now
                actions.append(Send(peer, book.say(leg)))
        return [*actions, *self._settle(book)]

    def _given_up(self, leg: _Leg) -> float:
        """When silence is an answer: to somebody who reads soon, to somebody who closes when the lease is over too."""
        return leg.heard + self._terms.patience_s + (self._terms.lease_s if leg.good is not None else 0.0)

    def _dues(self, book: _Book) -> Iterator[float]:
        if not book.finished:
            yield book.deadline
        for leg in book.legs.values():
            if leg.phase is not _Phase.CLOSED:
                yield min(leg.said + self._terms.beat_s, self._given_up(leg))

    def _more(self, book: _Book, peer: int, leg: _Leg, now: float) -> list[Action]:
        actions: list[Action] = []
        while leg.left and len(leg.flying) < self._terms.window:
            layer = leg.left.pop()
            leg.flying.add(layer)
            actions.append(Fetch(book.wanted.request, peer, layer, leg.pulls))
        if not leg.left and not leg.flying:
            leg.phase, leg.said = _Phase.CONFIRMING, now
            actions.append(Send(peer, book.say(leg)))
        return actions

    def _fail(self, book: _Book, peer: int, reason: str, now: float) -> list[Action]:
        leg = book.legs[peer]
        book.reasons.append(reason)
        actions = self._close(book, peer, leg, now, good=False)
        return [Cancel(book.wanted.request, peer), *actions] if leg.flying else actions

    def _fail_all(self, book: _Book, reason: str, now: float) -> list[Action]:
        open_legs = [peer for peer, leg in book.legs.items() if leg.good is None]
        actions = [action for peer in open_legs for action in self._fail(book, peer, reason, now)]
        return [*actions, *self._settle(book)]

    def _close(self, book: _Book, peer: int, leg: _Leg, now: float, *, good: bool) -> list[Action]:
        leg.good, leg.phase, leg.said = good, _Phase.CLOSING, now
        return [Send(peer, book.say(leg))]

    def _settle(self, book: _Book) -> list[Action]:
        """Tell the engine when every leg has ended and nothing flies; forget the pull when all are closed."""
        legs = book.legs.values()
        actions: list[Action] = []
        if not book.finished and all(leg.good is not None and not leg.flying for leg in legs):
            book.finished = True
            actions.append(_verdict(book))
        if book.finished and all(leg.phase is _Phase.CLOSED for leg in legs):
            self._books.pop(book.wanted.request, None)
        return actions


def _legs(wanted: Wanted, now: float) -> dict[int, _Leg]:
    """A leg for each prefill rank that has a part, and for each that nobody reads and that this rank speaks for."""
    sizes = (wanted.prefill_tp, wanted.decode_tp, wanted.num_kv_heads, wanted.units)
    turn = turn_of(wanted.request)
    plan = plan_pull(*sizes, wanted.decode_rank, mla=wanted.mla, turn=turn)
    mine = {rank for rank, who in enumerate(closers(*sizes, mla=wanted.mla, turn=turn)) if wanted.decode_rank in who}
    legs = {}
    for stage, (lo, hi) in enumerate(wanted.stages):
        for rank in sorted(mine):
            pulls = tuple(pull for pull in plan if pull.prefill_rank == rank and lo < hi)
            legs[stage * wanted.prefill_tp + rank] = _Leg(pulls, list(range(hi - 1, lo - 1, -1)), now, now)
    return legs


def _cells(pulls: tuple[Pull, ...]) -> int:
    return sum((pull.block_hi - pull.block_lo) * pull.num_heads for pull in pulls)


def _verdict(book: _Book) -> Finished:
    """A block is ready where in every layer each of its cells came over a good leg, once, from a block not stale."""
    wanted = book.wanted
    heads = len(heads_of(wanted.decode_tp, 1 if wanted.mla else wanted.num_kv_heads, wanted.decode_rank))
    good = [True] * -(-wanted.units // wanted.dst_block_units)
    for layer in range(len(wanted.cell_bytes)):
        bits = _arrived(book, layer, heads)
        good = [a and b for a, b in zip(good, whole(bits, heads, wanted.units, wanted.dst_block_units), strict=True)]
    ready = tuple(at for at, is_good in enumerate(good) if is_good)
    failed = tuple(at for at, is_good in enumerate(good) if not is_good)
    return Finished(wanted.request, ready, failed, tuple(book.reasons))


def _arrived(book: _Book, layer: int, heads: int) -> int:
    bits = 0
    for leg in book.legs.values():
        if not leg.good or layer not in leg.came:
            continue
        size = book.wanted.src_block_units
        stale = (unit for at in leg.stale for unit in range(at * size, (at + 1) * size))
        part = without(cells(leg.pulls, heads), heads, stale)
        if bits & part:
            raise Overlap(f"layer {layer} of {book.wanted.request}: two legs filled the same cells")
        bits |= part
    return bits
