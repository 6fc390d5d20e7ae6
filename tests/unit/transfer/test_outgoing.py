"""Many blocks in one call: out of memory and out of files, paced, stopped, and cut short."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
MEMORY = Path("/proc/self/mem")
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
        sent = meanwhile(lambda: one.send_run(blocks(memory.address), AT_ONCE, LONG_S, halt, tag=7))
        assert received(other, len(SIZES), 7) == DATA
        assert sent() == len(SIZES)
    assert (one.sent, other.received) == (len(DATA), len(DATA))


def test_out_of_a_file(tmp_path: Path):
    file, halt = tmp_path / "file", _native.Halt()
    file.write_bytes(b"before" + DATA + b"behind")
    with file.open("rb") as opened, two_ends() as (one, other):
        sent = meanwhile(lambda: one.send_run(blocks(6, opened.fileno()), AT_ONCE, LONG_S, halt, tag=7))
        assert received(other, len(SIZES), 7) == DATA
        assert sent() == len(SIZES)


def test_a_file_that_is_shorter_than_it_was(tmp_path: Path):
    file = tmp_path / "file"
    file.write_bytes(DATA[:-1])
    with file.open("rb") as opened, two_ends() as (one, other):
        sent = meanwhile(lambda: one.send_run(blocks(0, opened.fileno()), AT_ONCE, LONG_S, _native.Halt()))
        reading = meanwhile(lambda: received(other, len(SIZES), 0))
        with pytest.raises(PeerLost, match="a file is shorter"):
            sent()
        one.abort()
        with pytest.raises(PeerLost, match="closed"):
            reading()


@contextmanager
def low_memory(size: int) -> Iterator[int]:
    """Memory below 2 GiB."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    there_or_nowhere = 0x100000  # MAP_FIXED_NOREPLACE, mmap(2)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | there_or_nowhere
    places = range(256 << 20, (2 << 30) - size, 16 << 20)
    address = next(at for at in places if libc.mmap(at, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) == at)
    try:
        yield address
    finally:
        libc.munmap(address, size)


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EOVERFLOW])
def test_out_of_a_file_that_can_only_be_read(error: int):
    """As some network file systems are. The file is this process's memory: its offsets are addresses."""
    memory, halt = Memory(), _native.Halt()
    with low_memory(len(DATA)) as low, MEMORY.open("rb") as file, two_ends() as (one, other):
        ctypes.memmove(low, DATA, len(DATA))
        at = low if error == errno.EINVAL else memory.address
        with pytest.raises(OSError, match=os.strerror(error)):
            os.sendfile(one.socket.fileno(), file.fileno(), at, 1)
        sent = meanwhile(lambda: one.send_run(blocks(at, file.fileno()), AT_ONCE, LONG_S, halt, tag=7))
        assert received(other, len(SIZES), 7) == DATA
        assert sent() == len(SIZES)


def test_a_file_that_can_only_be_read_and_not_there():
    with MEMORY.open("rb") as file, two_ends() as (one, other):
        unread = meanwhile(lambda: one.send_run([Block(0, 0, 9, 0, file.fileno())], Slot(1), LONG_S, _native.Halt()))
        with pytest.raises(PeerLost, match="Input/output error"):
            unread()
        assert other.head(soon()).length == 9


def test_only_what_the_limit_has_room_for():
    class Two:
        free = False

        def wait(self, size: int) -> None:
            raise AssertionError("it is booked")

        def book(self, sizes: Sequence[int]) -> Slot:
            assert sizes == list(SIZES)
            return Slot(2)

    with two_ends() as (one, _):
        assert one.unlimited
        assert one.book(list(SIZES)) == AT_ONCE
        one.configure(pace=Two())
        assert not one.unlimited
        assert one.book(list(SIZES)) == Slot(2)


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
