"""DATA of many short rows, by way of a stage that stays in the cache, in one call that does not hold Python's lock.

Between two calls, one for the rows and one for the socket, a thread takes that lock, which that of another connection
may have. The receiver places what comes piece by piece, before it leaves the nearest caches.
"""

from __future__ import annotations

from native import _native
from native._native import Boxes
from transfer.transports import frame, loss
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.frame import Header, Kind

Range = tuple[int, int]
"""An address, and bytes there."""


def send(channel: Channel, boxes: Boxes, stage: Range, source: Range, deadline: Deadline, *, position: int = 0) -> None:
    """The rows that `boxes` name in `source`, which fill `stage`; else as `Channel.send_data`."""
    if not channel.plain:
        channel.send_rows([stage], _native.gather(boxes, stage, source), deadline, position=position)
        return
    channel.flush(deadline)
    _, size = stage
    header = frame.encode(Header(Kind.DATA, 0, size, position, 0))
    error = _native.send_gathered(channel.socket.fileno(), header, boxes, stage, source, deadline.left())
    if error:
        raise loss.untaken(channel.peer, error)
    channel.sent += size


def receive(channel: Channel, header: Header, boxes: Boxes, into: Range, stage: Range, deadline: Deadline) -> None:
    """The body of a DATA frame, which fills `stage`, to where `boxes` say; else as `Channel.into`."""
    channel.must_be_data(header)
    if channel.plain:
        fd, left = channel.socket.fileno(), deadline.left()
        error, total = _native.receive_scattered(fd, boxes, into, stage, left)
        if error:
            raise loss.lost(channel.peer, error)
    else:
        channel.receive_rows([stage], deadline)
        total = _native.scatter(boxes, into, stage)
    channel.came(header, total)
