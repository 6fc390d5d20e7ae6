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
from transfer.errors import PeerViolation, TransferError
from transfer.kv.boxes import Box
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
        """Copy `boxes` from the region that the source calls `handle` into `into`; bytes copied.

        Raises:
            ReadRefused: no such region, or a box leaves it. ValueError: a box leaves `into`. Nothing was written.
            PeerLost: the source is gone, or the deadline passed. Corrupt: what came is not what was sent.
            Stopped: `stop` said so.
        """

    def abort(self) -> None:
        """From any thread: a read that waits for its peer ends soon. What comes after it is as usual."""

    def close(self) -> None:
        """Let go of connections and mappings. Idempotent."""


def check_source(boxes: Sequence[Box], size: int, handle: int) -> None:
    """Raises ReadRefused where a box leaves the source's region of `size` bytes, or they read more than there is."""
    for box in boxes:
        reach = sum((dim.steps - 1) * dim.src_stride for dim in box.dims)
        if box.src < 0 or box.length < 1 or box.src + reach + box.length > size:
            raise ReadRefused(f"a box leaves region {handle} of {size} bytes")
    if sum(box.bytes for box in boxes) > size:
        raise ReadRefused(f"the boxes read more than the {size} bytes of region {handle}")


def check_target(boxes: Sequence[Box], into: Span) -> None:
    """Raises ValueError where a box leaves `into`."""
    for box in boxes:
        reach = sum((dim.steps - 1) * dim.dst_stride for dim in box.dims)
        if box.dst < 0 or box.dst + reach + box.length > into.size:
            raise ValueError(f"a box leaves the {into.size} bytes that it is to be placed into")


def place(boxes: Sequence[Box], into: Span, source: Span, kernel: str = "") -> int:
    """`native._native.place`."""
    return _native.place(boxes, into, source, kernel)
