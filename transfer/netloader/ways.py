"""Other ways for the bytes than the connection: asked for by the client after the offer, granted by the source.

Each ends with the connection. Whatever goes wrong here breaks that connection; the next one does without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from transfer.errors import PeerViolation
from transfer.netloader import wire
from transfer.netloader.wire import Borrow, Code, Lent, Meet, Refused, Share, Shared
from transfer.transports import window
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.window import Window

ASK_S = 20.0
JOIN_S = 30.0


class Loan(NamedTuple):
    """`lent`: what the client is told. `place(address, length)`: where these bytes lie in it, or None."""

    lent: Lent
    place: Callable[[int, int], int | None]


Lend = Callable[[str], Loan | None]
"""What a client on that machine may map; None: nothing."""
Together = Callable[[str, str], str]
"""The digest under which who starts on that machine and device gets the pages of these weights; empty: it does not."""
Open = Callable[[Lent], Window]
"""Maps what was lent. Raises TransferError."""


# ---- the client


def borrow(channel: Channel, machine: str, open_lent: Open) -> bool:
    """Map what the source lends; False: it lends nothing, and the connection is as before.

    Raises:
        TransferError: it could not be mapped: connect anew.
    """
    channel.send(wire.encode(Borrow(machine, together=True)), Deadline.after(ASK_S))
    _, body = channel.receive(Deadline.after(ASK_S))
    answer = wire.decode_answer(body)
    match answer:
        case Lent():
            channel.carry(taker=open_lent(answer))
            return True
        case Refused(Code.NO_WAY):
            return False
    raise PeerViolation(f"{type(answer).__name__} is no answer to Borrow")


def share(channel: Channel, machine: str, device: str) -> str:
    """The digest under which the daemon gives the source's pages to who starts on `device`; empty: it does not.

    Raises:
        TransferError: the connection is of no use any more.
    """
    channel.send(wire.encode(Share(machine, device)), Deadline.after(ASK_S))
    _, body = channel.receive(Deadline.after(ASK_S))
    answer = wire.decode_answer(body)
    match answer:
        case Shared(digest):
            return digest
        case Refused(Code.NO_WAY):
            return ""
    raise PeerViolation(f"{type(answer).__name__} is no answer to Share")


def meet(channel: Channel, device: str = "cpu") -> str:
    """Join the source in a process group of the backend, returned, for tensors on `device`. Raises TransferError:
    connect anew."""
    from transfer.transports import collective  # late: only who goes this way needs torch

    backend = collective.backend_of(device)
    channel.send(wire.encode(Meet(backend)), Deadline.after(ASK_S))
    starter, until = collective.Side.STARTER, Deadline.after(JOIN_S)
    channel.carry(taker=collective.join(channel, starter, until, backend=backend, device=device))
    return backend


# ---- the source


def lend(channel: Channel, request: Borrow, lend_to: Lend | None) -> Loan | None:
    """Answer a `Borrow`; what is lent now. Raises TransferError."""
    loan = lend_to(request.machine) if lend_to else None
    answer = loan.lent if loan else Refused(Code.NO_WAY, ("nothing is lent to that machine",))
    if loan is not None:
        channel.carry(giver=window.Lent(loan.place))
    channel.send(wire.encode(answer), Deadline.after(ASK_S))
    return loan


def give_share(channel: Channel, request: Share, together: Together | None) -> None:
    """Answer a `Share`. Raises TransferError."""
    digest = together(request.machine, request.device) if together else ""
    answer = Shared(digest) if digest else Refused(Code.NO_WAY, ("no pages are shared with that device",))
    channel.send(wire.encode(answer), Deadline.after(ASK_S))


def be_met(channel: Channel, request: Meet, device: str = "cpu") -> None:
    """Answer a `Meet` with tensors on `device`. Raises TransferError, also where its backend is another."""
    from transfer.transports import collective

    source, until = collective.Side.SOURCE, Deadline.after(JOIN_S)
    channel.carry(giver=collective.join(channel, source, until, backend=request.backend, device=device))
