"""What one connection of a client takes in: it claims runs of blocks, asks for them, and receives them in place."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from transfer.errors import PeerViolation, TransferError
from transfer.netloader import wire
from transfer.netloader.copier import Copier
from transfer.netloader.manifest import Manifest
from transfer.netloader.wire import Code, Read, Refused
from transfer.netloader.work import Run, Work
from transfer.transports.carrier import Piece
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.frame import Header, Kind

FRAME_S = 20.0
"""A source that sends no block in so long is lost; longer than a source waits for a block of its own."""
RUN = 8
"""Blocks in one request."""
NEAR_RUNS = 4
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
        grid, sums = self._manifest.grid, self._manifest.sum
        kind, take = (Kind.ASIDE, self._take_near) if self._channel.parallel else (Kind.DATA, self._take)
        for number in range(run.first, run.first + run.length):
            block = grid.block(number)
            take(Header(kind, tag, block.length, number, sums(number)), self._addresses[block.extent] + block.offset)

    def _take(self, due: Header, address: int) -> None:
        """The next frame, which must bring this block."""
        deadline = Deadline.after(FRAME_S)
        header = self._channel.expect(due, address, deadline)
        if header is due:
            self._land(due.position)
        else:
            self._take_other(header, due, address, deadline)

    def _take_near(self, due: Header, address: int) -> None:
        """The same, where it most likely lies in what is mapped here."""
        channel, deadline = self._channel, Deadline.after(FRAME_S)
        header = channel.head(deadline)
        if header == due:
            piece = Piece(channel.place(header, deadline), address, due.length, due.sum)
            self._copier.put(due.position, piece, deadline, more=channel.more)
        else:
            self._copier.begin(deadline)
            self._take_other(header, due, address, deadline)

    def _take_other(self, header: Header, due: Header, address: int, deadline: Deadline) -> None:
        """It comes another way, or not at all."""
        if header.kind is Kind.MESSAGE:
            _raise_refusal(self._channel.body(header, deadline))
        if header != due._replace(kind=header.kind):
            raise PeerViolation(f"block {due.position} was due, {header} came", remedy="the source has other content")
        self._channel.into(header, address, deadline)
        self._land(due.position)

    def _land(self, number: int) -> None:
        self._work.land(number)
        self._direct += 1


def _raise_refusal(body: bytes) -> None:
    answer = wire.decode_answer(body)
    if isinstance(answer, Refused):
        raise Denied(answer.code, answer.details)
    raise PeerViolation(f"{type(answer).__name__} where a block was due")
