"""DATA by way of a stage, over a socket by itself and over one that only Python can write to and read from."""

from __future__ import annotations

import random
import socket

import pytest

from native._native import Boxes
from tests.helpers.memory import buffer, read, write
from tests.helpers.wires import meanwhile, soon, two_ends
from transfer.errors import Corrupt, PeerLost, PeerViolation
from transfer.kv.boxes import Box, Dim
from transfer.transports import frame, staged
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.frame import Header, Kind

ROWS, LENGTH = 400, 512
SIZE = ROWS * LENGTH
GATHERED = Boxes([Box(0, 0, LENGTH, (Dim(ROWS, LENGTH, 2 * LENGTH),))])
PLACED = Boxes([Box(0, 0, LENGTH, (Dim(ROWS, 2 * LENGTH, LENGTH),))])


@pytest.fixture(params=["plain", "wrapped"])
def ends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "wrapped":
        monkeypatch.setattr(Channel, "plain", False)


@pytest.mark.usefixtures("ends")
def test_rows_leave_from_between_gaps_and_arrive_between_gaps() -> None:
    """Behind what the channel held back, and counted on both sides."""
    content = random.Random(5).randbytes(2 * SIZE)
    with two_ends() as (one, other), buffer(2 * SIZE) as source, buffer(2 * SIZE) as into, buffer(SIZE) as stage:
        write(source, content)
        write(into, bytes(2 * SIZE))
        one._hold(b"held")

        def send() -> None:
            with buffer(SIZE) as mine:
                staged.send(one, GATHERED, (mine, SIZE), (source, 2 * SIZE), soon(), position=7)

        sent = meanwhile(send)
        assert other.receive_raw(4, soon()) == b"held"
        header = other.head(soon())
        assert header[:4] == (Kind.DATA, 0, SIZE, 7)
        staged.receive(other, header, PLACED, (into, 2 * SIZE), (stage, SIZE), soon())
        sent()
        rows = [content[at : at + LENGTH] for at in range(0, 2 * SIZE, 2 * LENGTH)]
        assert header.sum == frame.checksum(b"".join(rows))
        assert read(into, 2 * SIZE) == b"".join(row + bytes(LENGTH) for row in rows)
        assert (one.sent, other.received) == (SIZE, SIZE)


@pytest.mark.usefixtures("ends")
def test_what_is_damaged_or_no_data_is_not_taken() -> None:
    with two_ends() as (one, other), buffer(2 * SIZE) as into, buffer(SIZE) as stage:
        sent = meanwhile(lambda: one.send_raw(bytes(SIZE), soon()))
        header = Header(Kind.DATA, 0, SIZE, 0, frame.checksum(bytes(SIZE)) ^ 1)
        with pytest.raises(Corrupt):
            staged.receive(other, header, PLACED, (into, 2 * SIZE), (stage, SIZE), soon())
        sent()
        for kind in (Kind.MESSAGE, Kind.ASIDE):
            with pytest.raises(PeerViolation, match=kind.name):
                staged.receive(other, header._replace(kind=kind), PLACED, (into, 2 * SIZE), (stage, SIZE), soon())


@pytest.mark.usefixtures("ends")
def test_who_is_gone_or_silent_is_lost() -> None:
    header = Header(Kind.DATA, 0, SIZE, 0, 0)
    with two_ends() as (one, other), buffer(2 * SIZE) as memory, buffer(SIZE) as stage:
        whole, part = (memory, 2 * SIZE), (stage, SIZE)
        with pytest.raises(PeerLost, match="deadline"):
            staged.receive(other, header, PLACED, whole, part, Deadline.after(0.01))
        one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with pytest.raises(PeerLost, match="deadline"):
            staged.send(one, GATHERED, part, whole, Deadline.after(0.01))
        one.abort()
        with pytest.raises(PeerLost):
            staged.send(one, GATHERED, part, whole, soon())
        with pytest.raises(PeerLost):
            staged.receive(other, header, PLACED, whole, part, soon())
