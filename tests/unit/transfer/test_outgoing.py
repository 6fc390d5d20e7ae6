"""Many blocks in one call: out of memory and out of files, paced, stopped, and cut short."""

from __future__ import annotations

import ctypes
import random
import time
from pathlib import Path

import pytest

from native import _native
from tests.helpers.wires import meanwhile, soon, two_ends
from transfer.errors import PeerLost
from transfer.transports import frame, outgoing
from transfer.transports.channel import Channel
from transfer.transports.frame import Kind
from transfer.transports.outgoing import Block
from transfer.transports.pace import Slot

SIZES = (1 << 20, 0, 1, 300_001)
DATA = random.Random(5).randbytes(sum(SIZES))
LONG_S = 30.0
AT_ONCE = Slot(len(SIZES))


class Memory:
    def __init__(self) -> None:
        self._held = ctypes.create_string_buffer(DATA, len(DATA))
        self.address = ctypes.addressof(self._held)


def blocks(at: int, file: int = -1) -> list[Block]:
    """DATA cut into `SIZES`, the first at `at`."""
    found, place = [], 0
    for number, size in enumerate(SIZES):
        found.append(Block(number, frame.checksum(DATA[place : place + size]), size, at + place, file))
        place += size
    return found


def received(channel: Channel, count: int, tag: int) -> bytes:
    """The bodies of so many frames, each checked against its header."""
    bodies = b""
    for number, size in enumerate(SIZES[:count]):
        header = channel.head(soon())
        assert header[:4] == (Kind.DATA, tag, size, number)
        body = ctypes.create_string_buffer(max(1, size))
        channel.into(header, ctypes.addressof(body), soon())
        bodies += body.raw[:size]
    return bodies


def test_out_of_memory():
    memory, halt = Memory(), _native.Halt()
    with two_ends() as (one, other):
        sent = meanwhile(lambda: one.send_run(blocks(memory.address), LONG_S, halt, tag=7))
        assert received(other, len(SIZES), 7) == DATA
        assert sent() == len(SIZES)
    assert (one.sent, other.received) == (len(DATA), len(DATA))


def test_out_of_a_file(tmp_path: Path):
    file, halt = tmp_path / "file", _native.Halt()
    file.write_bytes(b"before" + DATA + b"behind")
    with file.open("rb") as opened, two_ends() as (one, other):
        sent = meanwhile(lambda: one.send_run(blocks(6, opened.fileno()), LONG_S, halt, tag=7))
        assert received(other, len(SIZES), 7) == DATA
        assert sent() == len(SIZES)


def test_a_file_that_is_shorter_than_it_was(tmp_path: Path):
    file = tmp_path / "file"
    file.write_bytes(DATA[:-1])
    with file.open("rb") as opened, two_ends() as (one, other):
        sent = meanwhile(lambda: one.send_run(blocks(0, opened.fileno()), LONG_S, _native.Halt()))
        reading = meanwhile(lambda: received(other, len(SIZES), 0))
        with pytest.raises(PeerLost, match="a file is shorter"):
            sent()
        one.abort()
        with pytest.raises(PeerLost, match="closed"):
            reading()


def test_only_what_the_limit_has_room_for():
    class Two:
        def wait(self, size: int) -> None:
            raise AssertionError("it is booked")

        def book(self, sizes: list[int]) -> Slot:
            assert sizes == list(SIZES)
            return Slot(2)

    memory = Memory()
    with two_ends() as (one, other):
        one.configure(pace=Two())  # type: ignore[arg-type]
        sent = meanwhile(lambda: one.send_run(blocks(memory.address), LONG_S, _native.Halt()))
        received(other, 2, 0)
        assert sent() == 2


def test_each_block_goes_when_it_is_due():
    """Later is always possible, earlier is not."""
    memory, rate, delay = Memory(), 2e7, 0.03
    with two_ends() as (one, other):
        begun = time.monotonic()
        reading = meanwhile(lambda: received(other, len(SIZES), 0))
        assert send(one, blocks(memory.address), Slot(len(SIZES), delay, rate), _native.Halt()) == len(SIZES)
        assert time.monotonic() - begun >= delay + sum(SIZES[:-1]) / rate
        reading()


def test_who_waits_for_its_turn_is_stopped():
    memory, halt = Memory(), _native.Halt()
    with two_ends() as (one, other):
        sent = meanwhile(lambda: send(one, blocks(memory.address), Slot(len(SIZES), 0.0, 1.0), halt))
        received(other, 1, 0)  # the next is due in twelve days
        halt.set()
        assert sent() == 1
        assert send(one, blocks(memory.address), AT_ONCE, halt) == 0
        halt.clear()
        sent = meanwhile(lambda: send(one, blocks(memory.address), AT_ONCE, halt))
        received(other, len(SIZES), 0)
        assert sent() == len(SIZES)


@pytest.mark.parametrize("slot", [AT_ONCE, Slot(len(SIZES), 1e6, 1.0)], ids=["sending", "waiting"])
def test_a_connection_that_breaks_frees_who_sends(slot: Slot):
    memory = Memory()
    with two_ends() as (one, _):
        sent = meanwhile(lambda: send(one, blocks(memory.address) * 64, slot, _native.Halt()))
        one.abort()
        with pytest.raises(PeerLost, match="took no more bytes"):
            sent()


def test_who_takes_nothing_is_left():
    memory = Memory()
    with two_ends() as (one, _), pytest.raises(PeerLost, match="the deadline passed"):
        outgoing.send(one.socket, blocks(memory.address) * 64, AT_ONCE, 0.05, _native.Halt(), 0)


def send(channel: Channel, some: list[Block], slot: Slot, halt: _native.Halt) -> int:
    return outgoing.send(channel.socket, some, slot, LONG_S, halt, 0)
