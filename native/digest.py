"""Identity of content: what a host master is named by, and what two states of memory are compared by.

`sha256-tree`: the concatenated ranges are cut into leaves of 1 MiB (the last may be shorter); the digest is SHA-256
over the concatenated SHA-256 of the leaves followed by the total length as 8 bytes, little-endian. So leaves can be
hashed in parallel, and how the bytes are cut into ranges does not matter. SHA-256 and not a faster checksum, because
engines of different owners share a master by this name alone; it runs at about 1.7 GB/s a core with SHA instructions.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

LEAF = 1 << 20

Range = tuple[int, int]
"""Address and length of readable memory of this process, in bytes."""


class TreeDigest:
    """The same digest of bytes that come a window at a time: each of whole leaves but the last."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._leaves = bytearray()
        self._size = 0

    def add(self, ranges: Sequence[Range]) -> None:
        """Raises ValueError where the bytes so far do not end with a leaf, or as `content_digest`."""
        if any(length < 0 for _, length in ranges):
            raise ValueError("a range has a negative length")
        if self._size % LEAF:
            raise ValueError("only the last window may end within a leaf")
        with ThreadPoolExecutor(self._threads, thread_name_prefix="digest") as pool:
            self._leaves += b"".join(pool.map(_leaf, portions(ranges, LEAF)))
        self._size += sum(length for _, length in ranges)

    def text(self) -> str:
        """Of everything that was added."""
        root = hashlib.sha256(self._leaves)
        root.update(self._size.to_bytes(8, "little"))
        return f"sha256-tree:{root.hexdigest()}"


def content_digest(ranges: Sequence[Range], threads: int = 1) -> str:
    """`sha256-tree:<64 hex digits>` of the bytes in `ranges`, in that order.

    Raises:
        ValueError: a length is negative or `threads` is under 1.
    """
    whole = TreeDigest(threads)
    whole.add(ranges)
    return whole.text()


def portions(ranges: Sequence[Range], size: int) -> Iterator[list[Range]]:
    """PURE. The bytes of `ranges` in their order, `size` at a time; the last time what is left."""
    pieces: list[Range] = []
    room = size
    for start, length in ranges:
        address, end = start, start + length
        while address < end:
            some = min(room, end - address)
            pieces.append((address, some))
            address += some
            room -= some
            if not room:
                yield pieces
                pieces, room = [], size
    if pieces:
        yield pieces


def _leaf(pieces: list[Range]) -> bytes:
    digest = hashlib.sha256()
    for address, length in pieces:
        digest.update((ctypes.c_char * length).from_address(address))
    return digest.digest()
