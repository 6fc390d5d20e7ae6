"""What one connection of a client takes in: it claims runs of blocks, asks for them, and receives them in place."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import NoReturn

from transfer.errors import PeerViolation, TransferError
from transfer.netloader import wire
from transfer.netloader.copier import Copier
from transfer.netloader.manifest import Manifest
from transfer.netloader.wire import Answer, Code, Placed, Read, Refused
from transfer.netloader.work import Run, Work
from transfer.transports.carrier import Piece
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.frame import Header, Kind

FRAME_S = 20.0
"""A source that sends no block in so long is lost; longer than a source waits for a block of its own."""
RUN = 8
"""Blocks in one request."""
NEAR_RUNS = 8
"""Runs in one request for what is mapped: a run takes a millisecond there, so each question counts."""
DEPTH = 2
"""Requests under way: while one is received, the next is there already."""
CLAIM_S = 1.0


class Denied(TransferError):
    """The source gives nothing, and says why. `passing`: it may later."""

    def __init__(self, code: Code, details: Sequence[str]) -> None:
        super().__init__(f"{code.value}: {'; '.join(details)}" if details else code.value)
        self.code = code
        self.passing = code in (Code.LATER, Code.SWITCHING)


class Intake:
    """Used by one thread, once."""

    def __init__(
        self, channel: Channel, manifest: Manifest, addresses: Sequence[int], work: Work, stop: threading.Event
    ) -> None:
        """`addresses`: where each extent belongs in this process. `stop`: set from elsewhere, what was asked for still
        comes, and no more is."""
        self._channel = channel
        self._manifest = manifest
        self._addresses = addresses
        self._work = work
        self._stop = stop
        self._copier = Copier(channel, work)
        self._claimed: deque[Run] = deque()
        self._asked: deque[tuple[int, Run]] = deque()
        self._tag = 0
        self._direct = 0

    @property
    def blocks(self) -> int:
        """How many have landed."""
        return self._direct + self._copier.blocks

    def run(self) -> None:
        """Until there is nothing left to fetch, or `stop`. What was claimed and did not land is given back, and nothing
        is written any more then.

        Raises:
            TransferError: why this source gives no more.
        """
        try:
            with self._copier:
                while not self._work.over and self._step():
                    pass
        finally:
            for run in reversed(self._claimed):
                self._work.give_back(run)

    def _step(self) -> bool:
        """False: this is all."""
        while len(self._asked) < DEPTH and not self._stop.is_set() and self._ask():
            pass
        if self._asked:
            self._receive(*self._asked.popleft())
        elif self._copier.busy:
            self._copier.settle()
        else:
            return not self._stop.is_set()
        return True

    def _ask(self) -> bool:
        """Claim a run and ask for it; False: none is unclaimed."""
        idle = not self._asked and not self._copier.busy
        run = self._work.claim(CLAIM_S if idle else 0.0, NEAR_RUNS if self._channel.parallel else 1)
        if run is None:
            return False
        while self._claimed and self._work.has_all(self._claimed[0]):
            self._claimed.popleft()
        self._claimed.append(run)
        self._tag = (self._tag + 1) & 0xFFFF
        self._asked.append((self._tag, run))
        self._channel.send(wire.encode(Read(*run)), Deadline.after(FRAME_S), tag=self._tag)
        return True

    def _receive(self, tag: int, run: Run) -> None:
        number, end = run.first, run.first + run.length
        while number < end:
            number += self._take_near(tag, number, end) if self._channel.parallel else self._take(tag, number)

    def _due(self, kind: Kind, tag: int, number: int) -> tuple[Header, int]:
        """The header that must come with this block, and where it belongs."""
        piece = self._piece(number, 0)
        return Header(kind, tag, piece.length, number, piece.sum), piece.address

    def _piece(self, number: int, place: int) -> Piece:
        block = self._manifest.grid.block(number)
        return Piece(place, self._addresses[block.extent] + block.offset, block.length, self._manifest.sum(number))

    def _take(self, tag: int, number: int) -> int:
        """The next frame, which must bring this block."""
        due, address = self._due(Kind.DATA, tag, number)
        deadline = Deadline.after(FRAME_S)
        header = self._channel.expect(due, address, deadline)
        if header is due:
            self._land(due.position)
        else:
            self._take_other(header, due, address, deadline)
        return 1

    def _take_near(self, tag: int, number: int, end: int) -> int:
        """The same, where it most likely lies in what is mapped here; how many blocks the frame told of."""
        channel, deadline = self._channel, Deadline.after(FRAME_S)
        header = channel.head(deadline)
        if header.kind is Kind.MESSAGE:
            self._copier.begin(deadline)
            places = _places(channel.body(header, deadline))
            if (header.tag, header.position) != (tag, number) or len(places) > end - number:
                raise PeerViolation(f"block {number} was due, {len(places)} from {header.position} on came")
            pieces = [self._piece(each, place) for each, place in enumerate(places, number)]
            self._copier.put_all(number, pieces, deadline)
            return len(places)
        due, address = self._due(Kind.ASIDE, tag, number)
        if header == due:
            piece = Piece(channel.place(header, deadline), address, due.length, due.sum)
            self._copier.put(number, piece, deadline, more=channel.more)
        else:
            self._copier.begin(deadline)
            self._take_other(header, due, address, deadline)
        return 1

    def _take_other(self, header: Header, due: Header, address: int, deadline: Deadline) -> None:
        """It comes another way, or not at all."""
        if header.kind is Kind.MESSAGE:
            _raise_refusal(wire.decode_answer(self._channel.body(header, deadline)))
        if header != due._replace(kind=header.kind):
            raise PeerViolation(f"block {due.position} was due, {header} came", remedy="the source has other content")
        self._channel.into(header, address, deadline)
        self._land(due.position)

    def _land(self, number: int) -> None:
        self._work.land(number)
        self._direct += 1


def _places(body: bytes) -> Sequence[int]:
    """Raises Denied, or PeerViolation."""
    answer = wire.decode_answer(body)
    return answer.places if isinstance(answer, Placed) else _raise_refusal(answer)


def _raise_refusal(answer: Answer) -> NoReturn:
    if isinstance(answer, Refused):
        raise Denied(answer.code, answer.details)
    raise PeerViolation(f"{type(answer).__name__} where a block was due")
