"""What native calls say of a connection that broke, as errors; and whether one has broken that nobody uses."""

from __future__ import annotations

import errno
import os
import select
import socket

from transfer.errors import PeerLost


def untaken(peer: str, error: int) -> PeerLost:
    """`error`: an errno, of a call that sends."""
    return PeerLost(f"{peer} took no more bytes: {reason(error)}")


def lost(peer: str, error: int) -> PeerLost:
    """`error`: an errno or -1, the stream's end, of a call that receives."""
    return PeerLost(f"no more bytes from {peer}: {reason(error)}" if error > 0 else f"{peer} closed the connection")


def reason(error: int) -> str:
    """Of an errno."""
    return "the deadline passed" if error == errno.ETIMEDOUT else os.strerror(error)


def hung_up(sock: socket.socket) -> bool:
    """Whether there is something to read, or the end, where nothing is due: the peer has closed it, or `abort` has."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
