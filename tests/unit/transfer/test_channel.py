"""One connection: frames both ways, and peers that misbehave in every way at once."""

from __future__ import annotations

import ctypes
import random
import socket
from collections.abc import Sequence

import pytest

from tests.helpers.wires import meanwhile, soon, two_ends
from transfer.errors import Corrupt, PeerLost, PeerViolation
from transfer.transports import frame
from transfer.transports.channel import PIECE, Channel
from transfer.transports.deadline import Deadline
from transfer.transports.frame import HEADER, Header, Kind
from transfer.transports.pace import Slot
from transfer.transports.window import Window

PAST = Deadline(0.0)


class Memory:
    """Bytes with an address."""

    def __init__(self, data: bytes) -> None:
        self.held = ctypes.create_string_buffer(data, len(data)) if data else ctypes.create_string_buffer(1)
        self.address = ctypes.addressof(self.held)
        self.size = len(data)

    @property
    def sum(self) -> int:
        return frame.checksum(bytes(self))

    def __bytes__(self) -> bytes:
        return bytes(self.held.raw[: self.size])


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE + 1, 3 * PIECE + 17])
def test_data_lands_at_its_address(size: int):
    source, target = Memory(random.Random(size).randbytes(size)), Memory(bytes(size))
    with two_ends() as (one, other):
        sent = meanwhile(lambda: one.send_data(source.address, size, source.sum, soon(), tag=3, position=8))
        header = other.head(soon())
        other.into(header, target.address, soon())
        sent()
    assert header[:4] == (Kind.DATA, 3, size, 8)
    assert bytes(target) == bytes(source)
    assert (one.sent, other.received) == (size, size)


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, 3 * PIECE + 17])
def test_what_is_expected_lands_in_one_step(size: int):
    source, target = Memory(random.Random(size).randbytes(size)), Memory(bytes(size))
    due = Header(Kind.DATA, 3, size, 8, source.sum)
    with two_ends() as (one, other):
        sent = meanwhile(lambda: one.send_data(source.address, size, source.sum, soon(), tag=3, position=8))
        assert other.expect(due, target.address, soon()) == due
        sent()
        assert bytes(target) == bytes(source)
        assert other.received == size


def test_what_is_expected_may_have_been_read_already():
    source, target = Memory(b"weights"), Memory(bytes(7))
    due = Header(Kind.DATA, 0, 7, 0, source.sum)
    with two_ends() as (one, other):
        other.carry(taker=Window([]))
        one.send(b"word", soon())
        one.send_data(source.address, 7, source.sum, soon())
        assert not other.more
        assert other.receive(soon())[1] == b"word"
        assert other.more
        assert other.expect(due, target.address, soon()) == due
        assert bytes(target) == b"weights"


def test_another_frame_than_was_expected_is_still_to_be_taken():
    source, target = Memory(b"weights"), Memory(bytes(7))
    with two_ends() as (one, other):
        one.send_data(source.address, 7, source.sum, soon(), position=1)
        one.send(b"refused", soon())
        came = other.expect(Header(Kind.DATA, 0, 7, 0, source.sum), target.address, soon())
        assert came == Header(Kind.DATA, 0, 7, 1, source.sum)
        assert bytes(target) == bytes(7)
        other.into(came, target.address, soon())
        assert bytes(target) == b"weights"
        came = other.expect(Header(Kind.DATA, 0, 7, 0, source.sum), target.address, soon())
        assert other.body(came, soon()) == b"refused"


def test_what_was_expected_and_is_damaged_or_does_not_come():
    source, target = Memory(b"weights"), Memory(bytes(7))
    due = Header(Kind.DATA, 0, 7, 0, source.sum ^ 1)
    with two_ends() as (one, other):
        one.send_data(source.address, 7, source.sum ^ 1, soon())
        with pytest.raises(Corrupt, match="7 bytes"):
            other.expect(due, target.address, soon())
        one.send_raw(bytes(HEADER), soon())
        with pytest.raises(Corrupt, match="header"):
            other.expect(due, target.address, soon())
        one.close()
        with pytest.raises(PeerLost, match="closed"):
            other.expect(due, target.address, soon())


def test_a_wrong_sum_is_noticed():
    source, target = Memory(b"weights"), Memory(bytes(7))
    with two_ends() as (one, other):
        one.send_data(source.address, 7, source.sum ^ 1, soon())
        with pytest.raises(Corrupt, match="7 bytes"):
            other.into(other.head(soon()), target.address, soon())


def test_a_damaged_message_is_noticed():
    with two_ends() as (one, other):
        one.send_raw(frame.encode(Header(Kind.MESSAGE, 0, 5, 0, frame.checksum(b"hello"))) + b"hullo", soon())
        with pytest.raises(Corrupt):
            other.receive(soon())


def test_garbage_is_noticed_at_the_first_header():
    with two_ends() as (one, other):
        one.send_raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", soon())
        with pytest.raises(Corrupt):
            other.receive(soon())


def test_a_message_over_the_bound_is_refused_before_its_body_is_read():
    with two_ends() as (one, other):
        other.configure(max_message=10)
        one.send_raw(frame.encode(Header(Kind.MESSAGE, 0, 11, 0, 0)), soon())
        with pytest.raises(PeerViolation, match="at most 10"):
            other.receive(soon())


def test_data_where_a_message_was_due_and_the_other_way_round():
    memory = Memory(b"x")
    with two_ends() as (one, other):
        one.send_data(memory.address, 1, memory.sum, soon())
        with pytest.raises(PeerViolation):
            other.receive(soon())
    with two_ends() as (one, other):
        one.send(b"x", soon())
        with pytest.raises(PeerViolation):
            other.into(other.head(soon()), memory.address, soon())


def test_what_nobody_wants_is_skipped():
    memory = Memory(bytes(PIECE + 5))
    with two_ends() as (one, other):
        sent = meanwhile(lambda: one.send_data(memory.address, memory.size, 0, soon()))
        other.skip(other.head(soon()), soon())
        sent()
        one.send(b"next", soon())
        assert other.receive(soon())[1] == b"next"


def test_a_peer_that_ends_in_mid_frame():
    with two_ends() as (one, other):
        one.send_raw(frame.encode(Header(Kind.MESSAGE, 0, 100, 0, 0)) + b"half", soon())
        one.close()
        with pytest.raises(PeerLost, match="closed"):
            other.receive(soon())


def test_a_silent_peer():
    with two_ends() as (one, other):
        with pytest.raises(PeerLost, match=r"in time|deadline"):
            other.receive(Deadline.after(0.01))
        with pytest.raises(PeerLost):
            one.send(b"x", PAST)


def test_a_peer_that_reads_nothing():
    memory = Memory(bytes(8 << 20))
    with two_ends() as (one, _), pytest.raises(PeerLost, match="took no more"):
        one.send_data(memory.address, memory.size, 0, Deadline.after(0.05))


def test_abort_ends_a_blocked_call():
    with two_ends() as (_, other):
        blocked = meanwhile(lambda: other.receive(soon()))
        other.abort()
        with pytest.raises(PeerLost):
            blocked()
        other.abort()


def test_a_closed_channel_has_no_peer():
    a, b = socket.socketpair()
    b.close()
    channel = Channel(a)
    channel.close()
    channel.close()
    assert channel.peer == "gone"


def test_the_limit_is_asked_before_and_not_within_a_send():
    asked: list[int] = []

    class Counting:
        def wait(self, size: int) -> None:
            asked.append(size)

        def book(self, sizes: Sequence[int]) -> Slot:
            raise AssertionError("nothing was booked")

    memory = Memory(b"abc")
    with two_ends() as (one, other):
        one.pace(1)
        one.configure(pace=Counting())
        one.pace(3)
        one.send_data(memory.address, 3, memory.sum, soon())
        other.into(other.head(soon()), memory.address, soon())
    assert asked == [3]
