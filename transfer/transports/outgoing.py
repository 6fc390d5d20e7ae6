"""DATA of many blocks in one call that does not hold Python's lock.

In an engine's worker the model runner gives that lock away and takes it back some thousand times a step: whatever a
side thread does in Python, the model waits for.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import NamedTuple

from native import _native
from transfer.errors import PeerLost
from transfer.transports import frame, loss
from transfer.transports.frame import Header, Kind
from transfer.transports.pace import Slot


class Block(NamedTuple):
    """Its `position` and `sum` as in the header, and where its bytes lie: in memory from address `at` on, or in an open
    file (a descriptor; -1: none) from offset `at` on."""

    position: int
    sum: int
    length: int
    at: int
    file: int = -1


def send(
    sock: socket.socket, blocks: Sequence[Block], slot: Slot, timeout_s: float, halt: _native.Halt, tag: int
) -> int:
    """How many have gone: all, or fewer where `halt` was set. `timeout_s`: what each may take once `slot` lets it go.
    Memory and files must stay until it returns.

    Raises:
        PeerLost: one was not taken in time, or the connection broke, or a file is shorter than that.
    """
    headers = (frame.encode(Header(Kind.DATA, tag, one.length, one.position, one.sum)) for one in blocks)
    frames = [(header, one.file, one.at, one.length) for header, one in zip(headers, blocks, strict=True)]
    sock.settimeout(timeout_s)  # so it does not block by itself
    error, gone = _native.send_frames(sock.fileno(), frames, (slot.delay_s, slot.rate), halt, timeout_s)
    if error < 0:
        raise PeerLost("a file is shorter than it was", remedy="start the source anew")
    if error:
        raise loss.untaken("the peer", error)
    return gone
