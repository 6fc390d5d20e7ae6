"""The source's memory, mapped here: bytes go straight to their place, once, and no core of the source has a part in it.

What the owner of the pages takes back meanwhile is not read any more (`Window`); what it changes reads as something
else, and is noticed when confirmation is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from transfer.kv.boxes import Box
from transfer.kv.copies import Copies
from transfer.kv.reader import ReadRefused, Span, Stopped, check_source, check_target, place
from transfer.transports.deadline import Deadline
from transfer.transports.window import Window

STEP = 4 << 20
"""Bytes between two looks at `stop` and the clock: a fraction of a millisecond. The owner of the pages waits so long at
most."""


class Part(NamedTuple):
    """Where a region lies in a window: offset and bytes."""

    place: int
    size: int


class MappedReader:
    """`regions`: what the source calls its regions, each inside of `window`, which stays its owner's to close."""

    def __init__(self, window: Window, regions: Mapping[int, Part], *, kernel: str = "") -> None:
        """Raises ReadRefused where a region leaves the window."""
        for handle, (at, size) in regions.items():
            if at < 0 or size < 0 or at + size > window.size:
                raise ReadRefused(f"region {handle} leaves what the source lent, {window.size} bytes")
        self._window = window
        self._regions = dict(regions)
        self._kernel = kernel

    def read(self, handle: int, boxes: Sequence[Box], into: Span, deadline: Deadline, stop: Callable[[], bool]) -> int:
        """As `Reader.read`. PeerLost also where the window was closed."""
        region = self._regions.get(handle)
        if region is None:
            raise ReadRefused(f"the source has no region {handle} mapped here")
        copies = Copies.of(boxes)
        check_source(copies, region.size, handle)
        check_target(copies, into)
        moved = 0
        for chunk in copies.chunks(STEP):
            if stop():
                raise Stopped("reading was stopped")
            deadline.left()
            with self._window.reading() as base:
                moved += place(chunk.whole, into, Span(base + region.place, region.size), self._kernel)
        return moved

    def abort(self) -> None:
        """As `Reader.abort`: nothing is waited for."""

    def close(self) -> None:
        """As `Reader.close`."""
        self._regions = {}
