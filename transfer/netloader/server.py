"""The source's side of a connection: answers one client until it goes."""

from __future__ import annotations

import logging

from transfer.errors import PeerLost, PeerViolation
from transfer.netloader import ways, wire
from transfer.netloader.guard import Switching
from transfer.netloader.identity import CHECKPOINT, differences
from transfer.netloader.shelf import Shelf
from transfer.netloader.source import Source
from transfer.netloader.ways import Lend
from transfer.netloader.wire import Ask, Borrow, Code, Meet, Offer, Read, Refused
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

    def __init__(self, shelf: Shelf, lend: Lend | None = None, checkpoint: Shelf | None = None) -> None:
        """`lend`: what clients of this machine may map; None: nothing. `checkpoint`: served to whose kernels differ."""
        self._shelf = shelf
        self._checkpoint = checkpoint
        self._lend = lend

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
        _Reads(channel, source, self._lend).answer()


class _Reads:
    def __init__(self, channel: Channel, source: Source, lend: Lend | None) -> None:
        self._channel = channel
        self._source = source
        self._lend = lend
        self._grid = source.manifest.grid

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
                    ways.lend(self._channel, request, self._lend)
                case Meet():
                    ways.be_met(self._channel, request)
                case _:
                    self._read(request, header.tag)

    def _read(self, read: Ask | Read, tag: int) -> None:
        if not isinstance(read, Read) or read.first + read.count > self._grid.blocks:
            _refuse(self._channel, Code.BAD_REQUEST, f"there are {self._grid.blocks} blocks", tag=tag)
            raise PeerViolation("a request for blocks that do not exist")
        end = read.first + read.count
        number = read.first
        while number < end:
            sent = self._run(number, end, tag) if self._channel.plain else self._block(number, end, tag)
            if sent is None:
                break
            number += sent

    def _run(self, first: int, end: int, tag: int) -> int | None:
        """Send blocks from `first` on, as many as are there now; how many, None: a refusal in the place of the next."""
        if not self._there(first):
            _refuse(self._channel, Code.LATER, "not here yet", tag=tag, position=first)
            return None
        await_block, last = self._source.presence.await_block, first + 1
        while last < end and await_block(last, 0.0):
            last += 1
        try:
            with self._source.reading(self._channel.abort):
                blocks = [self._source.block(number) for number in range(first, last)]
                return self._channel.send_run(blocks, FRAME_S, self._source.halt, tag=tag)
        except Switching as switching:
            _refuse(self._channel, Code.SWITCHING, str(switching), tag=tag, position=first)
            return None

    def _block(self, number: int, end: int, tag: int) -> int | None:
        """As `_run`, one block by a way that is not the connection's own; others before `end` follow it."""
        if not self._there(number):
            _refuse(self._channel, Code.LATER, "not here yet", tag=tag, position=number)
            return None
        self._channel.pace(self._grid.block(number).length)
        try:
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
        except Switching as switching:
            _refuse(self._channel, Code.SWITCHING, str(switching), tag=tag, position=number)
            return None
        return 1

    def _there(self, number: int) -> bool:
        """Who must wait for it gets what waits for it first."""
        if self._source.presence.await_block(number, 0.0):
            return True
        self._channel.flush(Deadline.after(FRAME_S))
        return self._source.presence.await_block(number, LATER_S)


def _refuse(channel: Channel, code: Code, *details: str, tag: int = 0, position: int = 0) -> None:
    channel.send(wire.encode(Refused(code, details)), Deadline.after(FRAME_S), tag=tag, position=position)
