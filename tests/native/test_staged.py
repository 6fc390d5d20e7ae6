"""Short rows through a stream socket by way of a stage: gathered and sent, received and placed, each in one call."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from native import _native
from tests.helpers.memory import buffer, read, write
from tests.helpers.wires import meanwhile
from transfer.kv.boxes import Box, Dim, runs
from transfer.transports import frame
from transfer.transports.frame import HEADER, Header, Kind

LONG_S = 60.0
WIDE = {"avx512f", "vpclmulqdq"}
"""Of a processor that sums rows while it streams them (`has_wide`)."""
FRAME = frame.encode(Header(Kind.DATA, 0, 5, 1 << 40, 0))
SHAPES = [
    [Box(0, 0, 512, (Dim(300, 1024, 768),))],
    [Box(0, 0, 256, (Dim(64, 256, 512),)), Box(1 << 17, 1 << 17, 70_144, (Dim(3, 100_096, 80_128),))],
    [Box(64, 64, 65_536, (Dim(2, 65_600, 65_600),)), Box(1 << 18, 1 << 18, 256, (Dim(9, 512, 512),))],
    [Box(3, 1, 100, (Dim(700, 300, 150),))],
    [Box(0, 0, 512, (Dim(3, 600, 700),)), Box(4096, 4096, 77, ())],
    [Box(0, 0, 0, ())],
]
"""Rows that fill pieces and rows that do not, rows longer than a piece, and rows that the CPU does not sum wide."""


@contextmanager
def lines(size: int, fill: random.Random | None = None) -> Iterator[tuple[int, int]]:
    """Memory from the start of a line on: what it holds, or zeros."""
    with buffer(size + 64) as room:
        at = -(-room // 64) * 64
        write(at, fill.randbytes(size) if fill else bytes(size))
        yield at, size


@contextmanager
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def moved(boxes: list[Box]) -> int:
    return sum(box.bytes for box in boxes)


def ends(boxes: list[Box]) -> tuple[int, int]:
    """One past the last byte of the destination and of the source."""
    rows = runs(boxes)
    return max(row.dst + row.length for row in rows), max(row.src + row.length for row in rows)


@pytest.mark.parametrize("boxes", SHAPES)
def test_gathered_rows_leave_behind_a_header_with_their_sum(boxes: list[Box]) -> None:
    size = moved(boxes)
    with sockets() as (one, other), lines(max(ends(boxes)), random.Random(1)) as source, lines(size) as stage:
        content = read(*source)
        rows = b"".join(
            content[at : at + box.length]
            for box in boxes
            for at in [row.src for row in runs([box._replace(length=1)])] or [0]
        )
        made = _native.Boxes(boxes)
        sent = meanwhile(lambda: _native.send_gathered(one.fileno(), b"held" + FRAME, made, stage, source, LONG_S))
        came = b""
        while len(came) < 4 + HEADER + size:
            came += other.recv(1 << 20)
        assert sent() == 0
        assert came[4 + HEADER :] == rows
        assert came[:4] == b"held"
        assert frame.decode(came[4 : 4 + HEADER]) == Header(Kind.DATA, 0, 5, 1 << 40, frame.checksum(rows))


@pytest.mark.parametrize("slices", [1 << 20, 65_536, 1000])
@pytest.mark.parametrize("boxes", SHAPES)
def test_what_comes_is_scattered_and_summed_however_it_is_cut(boxes: list[Box], slices: int) -> None:
    size, (end, _) = moved(boxes), ends(boxes)
    data = random.Random(2).randbytes(size)
    with sockets() as (one, other), lines(end + 64) as into, lines(end + 64) as wanted, lines(size) as stage:

        def send() -> None:
            for at in range(0, size, slices):
                one.sendall(data[at : at + slices])

        sent = meanwhile(send)
        made = _native.Boxes(boxes)
        assert _native.receive_scattered(other.fileno(), made, (into[0], end), stage, LONG_S) == (
            0,
            frame.checksum(data),
        )
        sent()
        write(stage[0], data)
        _native.place(_native.Boxes(dense(boxes)), (wanted[0], end), stage)
        assert read(*into) == read(*wanted)


def dense(boxes: list[Box]) -> list[Box]:
    """From rows that lie end to end."""
    made, at = [], 0
    for box in boxes:
        (dim,) = box.dims or (Dim(1, 0, 0),)
        made.append(box._replace(src=at, dims=(dim._replace(src_stride=box.length),)))
        at += box.bytes
    return made


@pytest.mark.parametrize("length", [512, 500])
def test_rows_that_stop_coming_say_so(length: int) -> None:
    """Behind the first piece, which has been placed where pieces are."""
    boxes = _native.Boxes([Box(0, 0, length, (Dim(200, length, length),))])
    by_pieces = length % 256 == 0 and set(Path("/proc/cpuinfo").read_text().split()) >= WIDE
    with lines(200 * length) as into, lines(200 * length) as stage:
        with sockets() as (one, other):
            sent = meanwhile(lambda: one.sendall(b"x" * 70_000))
            assert _native.receive_scattered(other.fileno(), boxes, into, stage, 0.05)[0] == errno.ETIMEDOUT
            sent()
        assert read(*into).count(b"x") == (65_536 if by_pieces else 0)
        with sockets() as (one, other):
            sent = meanwhile(lambda: (one.sendall(bytes(70_000)), one.close()))
            assert _native.receive_scattered(other.fileno(), boxes, into, stage, LONG_S)[0] == -1
            sent()


def test_who_takes_nothing_is_not_waited_for_longer_than_was_said() -> None:
    boxes = _native.Boxes([Box(0, 0, 4096, (Dim(1024, 4096, 4096),))])
    with lines(4 << 20) as source, lines(4 << 20) as stage, sockets() as (one, other):
        assert _native.send_gathered(one.fileno(), FRAME, boxes, stage, source, 0.05) == errno.ETIMEDOUT
        other.close()
        assert _native.send_gathered(one.fileno(), FRAME, boxes, stage, source, LONG_S) == errno.EPIPE


@pytest.mark.parametrize(
    ("box", "stage_bytes", "reason"),
    [
        (Box(0, 0, 512, (Dim(9, 512, 512),)), 8 * 512, "leaves"),
        (Box(0, 0, 512, (Dim(8, 512, 512),)), 9 * 512, "fill"),
        (Box(0, 3 << 12, 512, (Dim(3, 512, 512),)), 3 * 512, "leaves the source"),
        (Box(3 << 12, 0, 512, (Dim(3, 512, 512),)), 3 * 512, "leaves the destination"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_byte_travels(box: Box, stage_bytes: int, reason: str) -> None:
    boxes = _native.Boxes([box])
    with lines(3 << 12) as memory, lines(stage_bytes) as stage, sockets() as (one, other):
        other.setblocking(False)
        if reason != "leaves the destination":
            with pytest.raises(ValueError, match=reason):
                _native.send_gathered(one.fileno(), FRAME, boxes, stage, memory, LONG_S)
            with pytest.raises(BlockingIOError):
                other.recv(1)
        if reason != "leaves the source":
            one.send(b"x")
            with pytest.raises(ValueError, match=reason):
                _native.receive_scattered(other.fileno(), boxes, memory, stage, LONG_S)
            assert other.recv(2) == b"x"


def test_a_header_that_is_none_is_refused() -> None:
    boxes = _native.Boxes([Box(0, 0, 8, ())])
    with lines(8) as source, lines(8) as stage, sockets() as (one, _), pytest.raises(ValueError, match="header"):
        _native.send_gathered(one.fileno(), FRAME[1:], boxes, stage, source, LONG_S)
