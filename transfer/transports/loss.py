"""What native calls say of a connection that broke, as errors."""

from __future__ import annotations

import errno
import os

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
