"""What an engine's scheduler tells its ranks to do with KV blocks, once a step: plain values, equal for all ranks."""

from __future__ import annotations

from typing import NamedTuple

from transfer.kv.ticket import Part, Ticket


class Offer(NamedTuple):
    """Hold these blocks for whoever has the ticket. `owner`: the engine's own name of the request."""

    owner: str
    parts: tuple[Part, ...]


class Places(NamedTuple):
    """Of one KV group: which places of the ticket's block list are wanted, and the blocks that they go into."""

    places: tuple[int, ...]
    blocks: tuple[int, ...]


class Order(NamedTuple):
    """Pull. Without an owner it only tells the prefill engine that nothing is wanted any more."""

    owner: str
    ticket: Ticket
    wanted: tuple[Places, ...]


def let_go(ticket: Ticket) -> Order:
    """The prefill engine need not wait for its lease to end."""
    return Order("", ticket, tuple(Places((), ()) for _ in ticket.parts))


class Orders(NamedTuple):
    """`aborted`: owners whose pulls should end soon; each still ends with an answer. `freed`: blocks that this step
    gives to others, though they are offered: known after `offers`, before anything is written."""

    offers: tuple[Offer, ...] = ()
    pulls: tuple[Order, ...] = ()
    aborted: tuple[str, ...] = ()
    freed: tuple[int, ...] = ()
