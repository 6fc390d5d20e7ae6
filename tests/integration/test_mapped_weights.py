"""Weights whose source lends its memory: told in few words, copied by several threads, and each block checked."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import NamedTuple

import pytest

from tests.helpers.weights import BLOCK, Rank
from tests.helpers.wires import meanwhile, soon, two_ends
from transfer.errors import Corrupt, PeerLost, PeerViolation, TransferError
from transfer.netloader import server, ways, wire
from transfer.netloader.guard import Guard
from transfer.netloader.intake import RUN, Denied, Intake
from transfer.netloader.plan import Peer
from transfer.netloader.pull import Pull
from transfer.netloader.server import Server
from transfer.netloader.shelf import Shelf
from transfer.netloader.source import Presence, Source
from transfer.netloader.ways import Loan
from transfer.netloader.wire import Ask, Borrow, Code, Lent, Placed, Read
from transfer.netloader.work import Work
from transfer.transports import channel as channel_module
from transfer.transports.channel import Channel
from transfer.transports.frame import PLACE, Kind
from transfer.transports.pace import Pace, Slot
from transfer.transports.window import Window

BLOCKS = 2 * RUN + 3
LENGTHS = (BLOCKS * BLOCK,)


class Lending(NamedTuple):
    """A source whose master others may map, and a starter that does."""

    source: Rank
    starter: Rank
    work: Work
    pull: Pull
    sends: list[int]
    """Bytes of each thing that the source put on the wire."""
    windows: list[Window]


@contextmanager
def master(rank: Rank, flipped: int = -1) -> Iterator[int]:
    """A descriptor of its bytes; one bit of block `flipped` is wrong."""
    descriptor = os.memfd_create("master")
    try:
        data = bytearray(rank.content[0])
        if flipped >= 0:
            data[flipped * BLOCK + 77] ^= 4
        data.extend(bytes(-len(data) % mmap.PAGESIZE))
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        yield descriptor
    finally:
        os.close(descriptor)


def count(channel: Channel, sends: list[int]) -> None:
    sendall = channel._sendall

    def counted(data: bytes | memoryview, *more: object) -> None:
        sends.append(len(data))
        sendall(data, *more)  # type: ignore[arg-type]

    channel._sendall = counted  # type: ignore[method-assign]


class Slow:
    """A limit; `waited`: bytes of each thing that it held up."""

    def __init__(self) -> None:
        self.free = False
        self.waited: list[int] = []

    def wait(self, size: int) -> None:
        self.waited.append(size)

    def book(self, sizes: Sequence[int]) -> Slot:
        raise AssertionError("what is mapped is not booked")


@contextmanager
def lending(
    *,
    flipped: int = -1,
    presence: Presence | None = None,
    pace: Pace | None = None,
    elsewhere: Collection[int] = (),
    guard: Guard | None = None,
) -> Iterator[Lending]:
    """`elsewhere`: blocks that do not lie in what is lent."""
    source, starter, sends = Rank(LENGTHS, seed=1), Rank(LENGTHS), list[int]()
    work, windows = Work(BLOCKS, RUN), list[Window]()

    def place(address: int, length: int) -> int | None:
        found = address - source.addresses[0]
        return None if found // BLOCK in elsewhere else found

    loan = Loan(Lent(master="m"), place)
    served = Source(source.manifest(), source.addresses, presence, guard)
    with two_ends() as (one, other), master(source, flipped) as descriptor:
        count(other, sends)
        other.configure(pace=pace)
        ended = meanwhile(lambda: Server(Shelf(served), lambda machine: loan).serve(other))

        def agree(peer: Peer, channel: Channel) -> None:
            windows.append(Window([(descriptor, LENGTHS[0])]))
            assert ways.borrow(channel, "here", lambda lent: windows[0])

        me = Peer(name="A", host="", port=0)
        pull = Pull(me, starter.identity, starter.addresses, lambda *_: one, lambda whole: work, lambda: None, agree)
        try:
            yield Lending(source, starter, work, pull, sends, windows)
        finally:
            assert pull.abort(30)
            other.abort()
            with suppress(TransferError):
                ended()


def test_everything_lands_and_little_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(channel_module, "HOLD_S", 60.0)  # so that a busy machine changes nothing
    with lending() as found:
        assert found.work.await_done(30)
        found.pull._thread.join(30)
        assert found.pull.error is None
        assert found.pull.blocks == BLOCKS
        assert found.starter.content == found.source.content
        # Offer, loan, and the blocks of the one request together, in a few bytes for each.
        assert len(found.sends) == 3
        assert found.sends[-1] < BLOCKS * PLACE.size + 64


def test_under_a_rate_limit_each_block_waits_for_its_turn():
    pace = Slow()
    with lending(pace=pace) as found:
        assert found.work.await_done(30)
        assert found.starter.content == found.source.content
        assert pace.waited == [BLOCK] * BLOCKS


def test_a_limit_that_is_lifted_lets_the_rest_be_told_together():
    pace = Slow()
    pace.wait = lambda size: (pace.waited.append(size), setattr(pace, "free", len(pace.waited) == 5))  # type: ignore
    with lending(pace=pace) as found:
        assert found.work.await_done(30)
        assert found.starter.content == found.source.content
        assert len(pace.waited) == 5


@pytest.mark.parametrize("elsewhere", [{0}, {3, 4}, {BLOCKS - 1}, set(range(BLOCKS))], ids=str)
def test_what_does_not_lie_in_what_is_lent_comes_over_the_connection(elsewhere: set[int]):
    with lending(elsewhere=elsewhere) as found:
        assert found.work.await_done(30)
        found.pull._thread.join(30)
        assert found.pull.error is None
        assert found.pull.blocks == BLOCKS
        assert found.starter.content == found.source.content


def test_nothing_is_told_of_memory_that_is_being_switched():
    guard = Guard()
    assert guard.close()
    with lending(guard=guard) as found:
        found.pull._thread.join(30)
        assert isinstance(found.pull.error, Denied)
        assert found.pull.error.code is Code.SWITCHING
        assert not found.work.landed


def test_who_does_not_say_that_it_understands_is_told_of_each_block_by_itself():
    """A starter of an earlier vNPU."""
    source = Rank(LENGTHS, seed=1)
    loan = Loan(Lent(master="m"), lambda address, length: address - source.addresses[0])
    with two_ends() as (one, other):
        serving = meanwhile(
            lambda: Server(Shelf(Source(source.manifest(), source.addresses)), lambda _: loan).serve(other)
        )
        for request in (Ask(source.identity), Borrow("here"), Read(1, 3)):
            one.send(wire.encode(request), soon(), tag=9)
            if not isinstance(request, Read):
                one.receive(soon())
        for number in (1, 2, 3):
            header = one.head(soon())
            assert (header.kind, header.tag, header.position) == (Kind.ASIDE, 9, number)
            assert one.place(header, soon()) == number * BLOCK
        one.abort()
        with suppress(TransferError):
            serving()


@pytest.mark.parametrize(
    ("tag", "position", "count", "error"),
    [(1, 0, BLOCKS, None), (2, 0, BLOCKS, PeerViolation), (1, 1, BLOCKS - 1, PeerViolation),
     (1, 0, BLOCKS + 1, PeerViolation)],
)  # fmt: skip
def test_places_of_other_blocks_than_are_due_are_refused(
    tag: int, position: int, count: int, error: type[TransferError] | None
):
    source, starter = Rank(LENGTHS, seed=1), Rank(LENGTHS)
    work = Work(BLOCKS, RUN)
    with two_ends() as (one, other), master(source) as descriptor:
        one.carry(taker=Window([(descriptor, LENGTHS[0])]))
        told = Placed(tuple(min(number, BLOCKS - 1) * BLOCK for number in range(position, position + count)))
        other.send(wire.encode(told), soon(), tag=tag, position=position)
        intake = Intake(one, source.manifest(), starter.addresses, work, threading.Event())
        with pytest.raises(error) if error else nullcontext():
            intake.run()
    assert work.landed == (0 if error else BLOCKS)


@pytest.mark.parametrize("flipped", [0, RUN - 1, RUN, BLOCKS - 1])
def test_a_damaged_block_is_never_taken_for_right(flipped: int):
    """Whatever is copied beside it at the same time."""
    with lending(flipped=flipped) as found:
        found.pull._thread.join(30)
        assert isinstance(found.pull.error, Corrupt)
        assert not found.work.over
        assert not found.work.has(flipped)
        landed = [n for n in range(BLOCKS) if found.work.has(n)]
        assert len(landed) == found.pull.blocks
        for n in landed:
            at = slice(n * BLOCK, (n + 1) * BLOCK)
            assert found.starter.content[0][at] == found.source.content[0][at]
        # What was asked for and did not land is anybody's again.
        claimed = set[int]()
        while (run := found.work.claim()) is not None:
            claimed |= set(range(run.first, run.first + run.length))
        assert claimed == set(range(BLOCKS)) - set(landed)


def test_what_is_there_does_not_wait_for_what_is_not(monkeypatch: pytest.MonkeyPatch):
    """The source itself has only the first three as yet."""
    monkeypatch.setattr(server, "LATER_S", 60.0)
    have = Work(BLOCKS, 1)
    for n in range(3):
        have.land(n)
    with lending(presence=have) as found:
        for n in range(3):
            assert found.work.await_block(n, 30.0)  # sooner than the source gives up waiting
        for n in range(3, BLOCKS):
            have.land(n)
        assert found.work.await_done(30)
        assert found.starter.content == found.source.content


def test_memory_that_is_wanted_back_in_mid_stream(monkeypatch: pytest.MonkeyPatch):
    """The daemon closes the window: nothing is read any more when that returns, and the rest must come otherwise."""
    monkeypatch.setattr(server, "LATER_S", 60.0)
    have = Work(BLOCKS, 1)
    for n in range(3):
        have.land(n)
    with lending(presence=have) as found:
        assert found.work.await_block(2, 30.0)
        found.windows[0].close()
        for n in range(3, BLOCKS):
            have.land(n)
        found.pull._thread.join(30)
        assert isinstance(found.pull.error, PeerLost)
        assert [n for n in range(BLOCKS) if found.work.has(n)] == [0, 1, 2]
