"""The source's side of a connection: answers one client until it goes."""

from __future__ import annotations

import logging

from transfer.errors import PeerLost, PeerViolation
from transfer.netloader import ways, wire
from transfer.netloader.guard import Switching
from transfer.netloader.identity import CHECKPOINT, differences
from transfer.netloader.shelf import Shelf
from transfer.netloader.source import Source
from transfer.netloader.ways import Lend, Loan, Together
from transfer.netloader.wire import Ask, Borrow, Code, Meet, Offer, Placed, Read, Refused, Share
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline

log = logging.getLogger("vllm.vnpu.netloader")

ASK_S = 10.0
IDLE_S = 60.0
"""A client that has an offer and asks for nothing may be waiting for another source."""
FRAME_S = 20.0
"""A client that takes no block in so long is gone or hopelessly slow."""
LATER_S = 5.0
"""How long a block is waited for that this source itself has not got yet."""


class Server:
    """`serve` is what a `Listener` calls, in a thread for each client."""

    def __init__(
        self,
        shelf: Shelf,
        lend: Lend | None = None,
        checkpoint: Shelf | None = None,
        device: str = "cpu",
        together: Together | None = None,
    ) -> None:
        """`lend`: what clients of this machine may map; None: nothing. `checkpoint`: served to whose kernels differ.
        `device`: where a process group's tensors lie, as torch names it. `together`: whose pages may be those of the
        source; None: nobody's."""
        self._shelf = shelf
        self._checkpoint = checkpoint
        self._lend = lend
        self._device = device
        self._together = together

    def serve(self, channel: Channel) -> None:
        """Raises TransferError where the client misbehaves."""
        _, body = channel.receive(Deadline.after(ASK_S))
        ask = wire.decode_request(body)
        if not isinstance(ask, Ask):
            raise PeerViolation("the first request must be Ask")
        shelf = self._checkpoint if ask.identity.kernels == CHECKPOINT else self._shelf
        source = shelf.take(LATER_S) if shelf else None
        if source is None:
            _refuse(channel, Code.GONE if shelf is None or shelf.closed else Code.LATER, "nothing is served here")
            return
        wrong = differences(source.manifest.identity, ask.identity)
        if wrong:
            log.info("%s asks for other weights: %s", channel.peer, "; ".join(wrong))
            _refuse(channel, Code.MISMATCH, *wrong)
            return
        channel.send(wire.encode(Offer(source.manifest)), Deadline.after(FRAME_S))
        _Reads(channel, source, self._lend, self._device, self._together).answer()


class _Reads:
    def __init__(
        self, channel: Channel, source: Source, lend: Lend | None, device: str, together: Together | None
    ) -> None:
        self._channel = channel
        self._source = source
        self._lend = lend
        self._device = device
        self._grid = source.manifest.grid
        self._share = together
        self._told: Loan | None = None
        """What was lent, where many places of it may be told in one message."""

    def answer(self) -> None:
        while True:
            try:
                header, body = self._channel.receive(Deadline.after(IDLE_S))
            except PeerLost as gone:
                log.debug("%s: %s", self._channel.peer, gone)
                return
            request = wire.decode_request(body)
            match request:
                case Borrow():
                    loan = ways.lend(self._channel, request, self._lend)
                    self._told = loan if request.together else None
                case Share():
                    ways.give_share(self._channel, request, self._share)
                case Meet():
                    ways.be_met(self._channel, request, self._device)
                case _:
                    self._read(request, header.tag)

    def _read(self, read: Ask | Read, tag: int) -> None:
        if not isinstance(read, Read) or read.first + read.count > self._grid.blocks:
            _refuse(self._channel, Code.BAD_REQUEST, f"there are {self._grid.blocks} blocks", tag=tag)
            raise PeerViolation("a request for blocks that do not exist")
        end = read.first + read.count
        number = read.first
        while number < end:
            if not self._there(number):
                _refuse(self._channel, Code.LATER, "not here yet", tag=tag, position=number)
                break
            try:
                number += self._some(number, end, tag)
            except Switching as switching:
                _refuse(self._channel, Code.SWITCHING, str(switching), tag=tag, position=number)
                break

    def _some(self, first: int, end: int, tag: int) -> int:
        """Send some blocks before `end` from `first` on, which is there; how many. Raises Switching."""
        if self._channel.plain:
            return self._run(first, self._here(first, end), tag)
        if self._told and self._channel.unlimited:
            told = self._tell_places(self._told, first, self._here(first, end), tag)
            return told or self._block(first, end, tag)
        return self._block(first, end, tag)

    def _here(self, first: int, end: int) -> int:
        """The first block behind `first` that is not there now; at most `end`."""
        await_block, last = self._source.presence.await_block, first + 1
        while last < end and await_block(last, 0.0):
            last += 1
        return last

    def _run(self, first: int, end: int, tag: int) -> int:
        slot = self._channel.book([self._grid.block(number).length for number in range(first, end)])
        with self._source.reading(self._channel.abort):
            blocks = [self._source.block(number) for number in range(first, first + slot.pieces)]
            return self._channel.send_run(blocks, slot, FRAME_S, self._source.halt, tag=tag)

    def _tell_places(self, loan: Loan, first: int, end: int, tag: int) -> int:
        """Where blocks from `first` on lie in what was lent, in one message; how many do, before one that does not."""
        places = []
        with self._source.reading(self._channel.abort):
            for number in range(first, end):
                block = self._source.block(number)
                place = loan.place(block.at, block.length) if block.file < 0 else None
                if place is None:
                    break
                places.append(place)
        if places:
            self._channel.send(wire.encode(Placed(tuple(places))), Deadline.after(FRAME_S), tag=tag, position=first)
        return len(places)

    def _block(self, number: int, end: int, tag: int) -> int:
        """One block by a way that is not the connection's own; others before `end` follow it."""
        self._channel.pace(self._grid.block(number).length)
        with self._source.reading(self._channel.abort):
            self._channel.send_data(
                self._source.address(number),
                self._grid.block(number).length,
                self._source.manifest.sum(number),
                Deadline.after(FRAME_S),
                tag=tag,
                position=number,
                more=number + 1 < end,
            )
        return 1

    def _there(self, number: int) -> bool:
        """Who must wait for it gets what waits for it first."""
        if self._source.presence.await_block(number, 0.0):
            return True
        self._channel.flush(Deadline.after(FRAME_S))
        return self._source.presence.await_block(number, LATER_S)


def _refuse(channel: Channel, code: Code, *details: str, tag: int = 0, position: int = 0) -> None:
    channel.send(wire.encode(Refused(code, details)), Deadline.after(FRAME_S), tag=tag, position=position)
