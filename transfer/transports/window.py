"""Another process's memory, mapped here read-only: the host-local way for bytes, and no core of the source has a part
in it.

Descriptors come from the node daemon, which owns the pages: of a view of the source's device memory, or of its host
master. Such memory never shrinks, so reading it cannot fault, and does not change while it is mapped: before a view's
pages become anybody else's, the daemon asks for it back (`Window.close`).
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from native import _native
from transfer.errors import PeerLost, PeerViolation, TransferError
from transfer.transports.carrier import Piece
from transfer.transports.deadline import Deadline

HUGE = 2 << 20
"""Mappings begin at a multiple of it, so that huge pages can be used as such."""
_FIXED, _NORESERVE = 0x10, 0x4000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Window:
    """Descriptors mapped one behind the other. Also a `Taker`, whose places are offsets in it. Its methods may be
    called from different threads, and several may read at once."""

    parallel = True

    def __init__(self, chunks: Sequence[tuple[int, int]], closed: Callable[[], None] = lambda: None) -> None:
        """`chunks`: (descriptor, bytes), bytes a multiple of the page; descriptors stay the caller's to close. `closed`
        is called once, when nothing is mapped any more.

        Raises:
            TransferError: one cannot be mapped.
        """
        self.size = sum(length for _, length in chunks)
        self._closed = closed
        self._changed = threading.Condition()
        self._inside = 0
        self._open = True
        self._reserved = self.size + HUGE
        self._base = _map(0, self._reserved, -1, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        self._address = -(-self._base // HUGE) * HUGE
        at = self._address
        try:
            for descriptor, length in chunks:
                _map(at, length, descriptor, mmap.PROT_READ, mmap.MAP_SHARED | _FIXED)
                at += length
        except BaseException:
            _libc.munmap(self._base, self._reserved)
            raise

    @contextmanager
    def reading(self) -> Iterator[int]:
        """Address of the first byte, good within: `close` waits, so stay for milliseconds.

        Raises:
            PeerLost: it was closed.
        """
        with self._changed:
            if not self._open:
                raise PeerLost("the source took its memory back", remedy="ask again, or another source")
            self._inside += 1
        try:
            yield self._address
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @property
    def is_open(self) -> bool:
        return self._open

    def take(self, place: int, address: int, length: int, deadline: Deadline) -> int:
        """As `Taker.take`; waits for nobody."""
        self._check(place, length)
        deadline.left()
        with self.reading() as base:
            return _native.checked_copy(address, base + place, length)

    def take_all(self, pieces: Sequence[Piece], deadline: Deadline) -> int:
        """As `Taker.take_all`, in one call without Python's lock: a few megabytes at most, for `close` waits."""
        for piece in pieces:
            self._check(piece.place, piece.length)
        deadline.left()
        with self.reading() as base:
            return _native.checked_copies([(p.address, base + p.place, p.length, p.sum) for p in pieces])

    def _check(self, place: int, length: int) -> None:
        if not 0 <= place <= self.size - length:
            raise PeerViolation(f"{length} bytes at {place} of a window of {self.size}")

    def abort(self) -> None:
        """As `Taker.abort`: nothing is waited for."""

    def close(self) -> None:
        """Returns when nothing is mapped, and nobody reads, any more. Idempotent, from any thread."""
        with self._changed:
            self._open = False
            self._changed.wait_for(lambda: not self._inside)
            base, self._base = self._base, 0
            if base:
                _libc.munmap(base, self._reserved)
        if base:
            self._closed()


class Lent:
    """The source's side: a `Giver` that names the place of what the other side has mapped."""

    quiet = True

    def __init__(self, place: Callable[[int, int], int | None]) -> None:
        """`place(address, length)`: offset in the window; None: it is not in there."""
        self.place = place

    def push(self, address: int, length: int, deadline: Deadline) -> None:
        """As `Giver.push`: the other side takes it by itself."""

    def abort(self) -> None:
        """As `Giver.abort`: nothing is waited for."""

    def close(self) -> None:
        """As `Giver.close`: the other side lets go."""


def _map(address: int, length: int, descriptor: int, protection: int, flags: int) -> int:
    found = _libc.mmap(address, length, protection, flags, descriptor, 0)
    if found is None or found == ctypes.c_void_p(-1).value:
        raise TransferError(
            f"{length} bytes of descriptor {descriptor} cannot be mapped: errno {ctypes.get_errno()}",
            remedy="the owner of the pages must hand over open descriptors, and whole pages",
        )
    return int(found)
