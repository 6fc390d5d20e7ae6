"""How bytes come from one prefill rank: what every transport offers, and what it promises.

`read` blocks its thread, runs the copies and returns how many bytes are in place. It either does all of them or raises;
then part of the destination may have been written, and nothing of it may be used. It returns within the deadline, and
soon after `stop` says so: from then on nothing is written. Whether the source's blocks still were what they were is not
the transport's to know: that is asked after the last read (`Confirm`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from native import _native
from native._native import Boxes
from transfer.errors import PeerViolation, TransferError
from transfer.kv.boxes import Box
from transfer.kv.copies import Copies
from transfer.transports.deadline import Deadline

CHUNK = 512 << 10
"""Bytes that are staged at once: they are placed while they are in the cache."""


class Span(NamedTuple):
    """Memory of this process; whoever hands it out keeps it mapped."""

    address: int
    size: int


class Stopped(TransferError):
    """The reader's own side wanted no more."""


class ReadRefused(PeerViolation):
    """The source does not have what was asked for; the message names it."""


class Reader(Protocol):
    """One prefill rank's memory, from one thread at a time. After an error the next `read` starts afresh."""

    def read(self, handle: int, boxes: Sequence[Box], into: Span, deadline: Deadline, stop: Callable[[], bool]) -> int:
        """Copy `boxes` (`Copies`, where there are several reads by the same ones) from the region that the source calls
        `handle` into `into`; bytes copied.

        Raises:
            ReadRefused: no such region, or a box leaves it. ValueError: a box leaves `into`. Nothing was written.
            PeerLost: the source is gone, or the deadline passed. Corrupt: what came is not what was sent.
            Stopped: `stop` said so.
        """

    def abort(self) -> None:
        """From any thread: a read that waits for its peer ends soon. What comes after it is as usual."""

    def close(self) -> None:
        """Let go of connections and mappings. Idempotent."""


class Either:
    """Another way where there is one just now, else the connection."""

    def __init__(self, far: Reader, other: Callable[[Deadline], Reader | None]) -> None:
        """`other` may ask the source; it raises TransferError where that is gone. Its reader is its own to close, and
        waits for nobody."""
        self._far, self._other = far, other

    def read(self, handle: int, boxes: Sequence[Box], into: Span, deadline: Deadline, stop: Callable[[], bool]) -> int:
        """As `Reader.read`."""
        return (self._other(deadline) or self._far).read(handle, boxes, into, deadline, stop)

    def abort(self) -> None:
        """As `Reader.abort`."""
        self._far.abort()

    def close(self) -> None:
        """As `Reader.close`."""
        self._far.close()


def check_source(copies: Copies, size: int, handle: int) -> None:
    """Raises ReadRefused where a box leaves the source's region of `size` bytes, or they read more than there is."""
    if not 0 <= copies.src_end <= size:
        raise ReadRefused(f"a box leaves region {handle} of {size} bytes")
    if copies.bytes > size:
        raise ReadRefused(f"the boxes read more than the {size} bytes of region {handle}")


def check_target(copies: Copies, into: Span) -> None:
    """Raises ValueError where a box leaves `into`."""
    if not 0 <= copies.dst_end <= into.size:
        raise ValueError(f"a box leaves the {into.size} bytes that it is to be placed into")


def place(boxes: Boxes, into: Span, source: Span, kernel: str = "") -> int:
    """`native._native.place`."""
    return _native.place(boxes, into, source, kernel)
