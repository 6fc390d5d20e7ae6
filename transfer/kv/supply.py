"""One prefill engine as a decode rank sees it: a puller for each KV group, with connections of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import msgspec

from transfer.kv.fabric import Fabric, Peering
from transfer.kv.layout import KvLayout, unit_tokens
from transfer.kv.messages import Answer, Confirmed, Say, Terms
from transfer.kv.near import Near, Neighbour
from transfer.kv.orders import Order, Places
from transfer.kv.puller import Blocks, Peer, Puller
from transfer.kv.reader import Either, Reader, Span
from transfer.kv.sink import Finished, Wanted
from transfer.kv.tcp import SERVICE, TcpReader
from transfer.kv.ticket import Door, Ticket
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.dial import dial
from transfer.transports.trust import Trust


class Group(NamedTuple):
    """The cache of one KV group on this rank: layers of one layout."""

    layout: KvLayout
    layers: tuple[Span, ...]


class Me(NamedTuple):
    """This rank in its own engine."""

    tp: int
    rank: int
    groups: tuple[Group, ...]


def handles(groups: Sequence[Group]) -> list[int]:
    """The handle of each group's first layer; layers are counted through."""
    return [0, *accumulate(len(group.layers) for group in groups)][: len(groups)]


class Ways(NamedTuple):
    """How bytes may come beside TCP: mapped from engines of this machine; through a fabric."""

    near: Near | None = None
    fabric: Fabric | None = None


NONE = Ways()


def name(door: Door) -> str:
    """For the log."""
    return f"{door.host}:{door.port}"


class Supply:
    """Made in no time; connects when it is first used. `finished` hears of each part of a pull, from other threads."""

    def __init__(
        self,
        doors: Sequence[Door],
        me: Me,
        trust: Trust,
        terms: Terms,
        finished: Callable[[Finished], None],
        ways: Ways = NONE,
    ) -> None:
        self._doors, self._me, self._trust, self._terms = tuple(doors), me, trust, terms
        self._fabric = ways.fabric
        self._neighbours = [Neighbour(ways.near, name(door)) for door in doors] if ways.near else []
        self._peerings: list[Peering] = []
        self._places: dict[str, Mapping[int, int]] = {}
        self._finished = finished
        self._pullers = [self._puller(number) for number in range(len(me.groups))]

    def pull(self, order: Order) -> None:
        """Begin all parts; for each, `finished` follows.

        Raises:
            ValueError: layouts that do not fit, or a block that is not offered. Nothing was begun.
        """
        units = [self._wanted(order.ticket, number, places) for number, places in enumerate(order.wanted)]
        for number, (wanted, places) in enumerate(zip(units, order.wanted, strict=True)):
            part = order.ticket.parts[number]
            self._places[part.request] = {place: at for at, place in enumerate(places.places)}
            src = [part.blocks[place] for place in places.places]
            self._pullers[number].pull(wanted, Blocks(src, places.blocks))

    def abort(self, ticket: Ticket) -> None:
        """All parts; each still finishes."""
        for puller, part in zip(self._pullers, ticket.parts, strict=True):
            puller.abort(part.request)

    def abort_all(self, timeout_s: float) -> bool:
        """Blocks until nothing is written any more; whether it came so far."""
        quiet = [puller.abort_all(timeout_s) for puller in self._pullers]
        return all(quiet)

    def close(self) -> None:
        """Blocks: end every thread and connection."""
        for puller in self._pullers:
            puller.close()
        for neighbour in self._neighbours:
            neighbour.close()
        for peering in self._peerings:
            peering.close()

    def _wanted(self, ticket: Ticket, number: int, places: Places) -> Wanted:
        group, part = self._me.groups[number], ticket.parts[number]
        cell = 0
        if places.places:
            if not all(part.blocks[place] for place in places.places):
                raise ValueError("a block is wanted that the prefill engine does not hold any more")
            unit_tokens(ticket.doors[0].layouts[number], group.layout)
            cell = len(group.layout.planes) * group.layout.slots * group.layout.slot_bytes
        return Wanted(
            request=part.request,
            epoch=ticket.doors[0].epoch,
            prefill_tp=len(ticket.doors),
            decode_tp=self._me.tp,
            decode_rank=self._me.rank,
            num_kv_heads=ticket.num_kv_heads,
            units=len(places.places),
            cell_bytes=(cell,) * len(group.layers),
            stages=((0, len(group.layers)),),
            mla=ticket.mla,
        )

    def _puller(self, number: int) -> Puller:
        group = self._me.groups[number]
        first = handles(self._me.groups)[number]
        peers = {rank: self._peer(rank, number, first, len(group.layers)) for rank in range(len(self._doors))}
        return Puller(group.layout, group.layers, peers, self._end, self._terms)

    def _peer(self, rank: int, number: int, first: int, layers: int) -> Peer:
        door = self._doors[rank]

        def connect(deadline: Deadline) -> Channel:
            # A host that swallows packets must not hold up an abort for as long as a read may take.
            soon = Deadline.after(min(deadline.left(), self._terms.patience_s))
            return dial(door.host, door.port, self._trust, SERVICE, soon)

        def ask(say: Say, deadline: Deadline) -> Answer:
            answer = words.ask(msgspec.structs.replace(say, epoch=door.epoch), deadline)
            return self._in_our_places(answer) if isinstance(answer, Confirmed) else answer

        words = TcpReader(connect)
        names = {layer: first + layer for layer in range(layers)}
        layout = door.layouts[number] if number < len(door.layouts) else self._me.groups[number].layout
        readers = [self._reader(TcpReader(connect), rank) for _ in range(self._terms.lanes)]
        return Peer(layout, names, readers, ask, words.close)

    def _reader(self, far: TcpReader, rank: int) -> Reader:
        if self._fabric is not None:
            peering = self._fabric.peer(name(self._doors[rank]))
            self._peerings.append(peering)
            return Either(far, lambda deadline: peering.reader(lambda ask: far.reached(ask, deadline)))
        if self._neighbours:
            neighbour = self._neighbours[rank]
            return Either(far, lambda deadline: neighbour.reader(lambda ask: far.borrow(ask, deadline)))
        return far

    def _in_our_places(self, answer: Confirmed) -> Confirmed:
        """The prefill side counts through the whole ticket, we through what we want of it."""
        places = self._places.get(answer.request, {})
        return msgspec.structs.replace(answer, stale=tuple(places[at] for at in answer.stale if at in places))

    def _end(self, verdict: Finished) -> None:
        self._places.pop(verdict.request, None)
        self._finished(verdict)
