"""The source's memory, mapped here: bytes go straight to their place, once, and no core of the source has a part in it.

Descriptors are handed in by whoever owns the pages (on one host the node daemon); they are of shared memory that never
shrinks, so that reading cannot fault. What the owner takes back meanwhile reads as something else, and is noticed when
confirmation is asked for.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Mapping, Sequence

from transfer.errors import TransferError
from transfer.kv.boxes import Box, split
from transfer.kv.reader import ReadRefused, Span, Stopped, check_source, check_target, place
from transfer.transports.deadline import Deadline

STEP = 4 << 20
"""Bytes between two looks at `stop` and the clock: a fraction of a millisecond."""
_FIXED, _NORESERVE = 0x10, 0x4000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Window:
    """Descriptors mapped read-only, one behind the other. A context manager that unmaps."""

    def __init__(self, chunks: Sequence[tuple[int, int]]) -> None:
        """`chunks`: (descriptor, bytes), bytes a multiple of the page; descriptors stay the caller's to close.

        Raises:
            TransferError: one cannot be mapped.
        """
        size = sum(length for _, length in chunks)
        self.span = Span(_map(0, size, -1, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE), size)
        at = self.span.address
        try:
            for descriptor, length in chunks:
                _map(at, length, descriptor, mmap.PROT_READ, mmap.MAP_SHARED | _FIXED)
                at += length
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Span:
        return self.span

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent; nobody may be reading."""
        if self.span.size:
            _libc.munmap(self.span.address, self.span.size)
            self.span = Span(0, 0)


class MappedReader:
    """`regions`: what the source calls its regions, in memory that is mapped here (`Window`)."""

    def __init__(self, regions: Mapping[int, Span], *, kernel: str = "") -> None:
        self._regions = dict(regions)
        self._kernel = kernel

    def read(self, handle: int, boxes: Sequence[Box], into: Span, deadline: Deadline, stop: Callable[[], bool]) -> int:
        """As `Reader.read`."""
        region = self._regions.get(handle)
        if region is None:
            raise ReadRefused(f"the source has no region {handle} mapped here")
        check_source(boxes, region.size, handle)
        check_target(boxes, into)
        moved = 0
        for chunk in split(boxes, STEP):
            if stop():
                raise Stopped("reading was stopped")
            deadline.left()
            moved += place(chunk, into, region, self._kernel)
        return moved

    def abort(self) -> None:
        """As `Reader.abort`: nothing is waited for."""

    def close(self) -> None:
        """As `Reader.close`; the mapping is its owner's."""
        self._regions = {}


def _map(address: int, length: int, descriptor: int, protection: int, flags: int) -> int:
    found = _libc.mmap(address, length, protection, flags, descriptor, 0)
    if found is None or found == ctypes.c_void_p(-1).value:
        raise TransferError(
            f"{length} bytes of descriptor {descriptor} cannot be mapped: errno {ctypes.get_errno()}",
            remedy="the owner of the pages must hand over open descriptors, and whole pages",
        )
    return int(found)
