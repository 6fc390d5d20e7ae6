"""Host memory that a switch copies from and to: the sealed master of the weights, and the buffer for saved KV.

Both are touched before they are needed: a first touch runs at a tenth of the speed of a copy (facts: 0.38 GB/s).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable

from native.client import Client

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED = ctypes.c_void_p(-1).value
_MADV_HUGEPAGE = 14
_GRAIN = 2 << 20


class Mapping:
    """`size` bytes at `address`: of a descriptor, shared, or anonymous. All pages are there already."""

    def __init__(self, size: int, fd: int | None = None, *, writable: bool = True) -> None:
        """Raises OSError where the kernel refuses."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if fd is None else mmap.MAP_SHARED | mmap.MAP_POPULATE
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        address = _LIBC.mmap(None, size, access, flags, -1 if fd is None else fd, 0)
        if address is None or address == _FAILED:
            raise OSError(ctypes.get_errno(), f"mmap of {size} bytes: {os.strerror(ctypes.get_errno())}")
        self.address: int = address
        self.size = size
        if fd is None:
            # Huge pages where the kernel has them; without them it is only slower.
            _LIBC.madvise(address, size, _MADV_HUGEPAGE)
            ctypes.memset(address, 0, size)

    def close(self) -> None:
        """Unmap; nothing may point here any more. Idempotent."""
        if self.size:
            _LIBC.munmap(self.address, self.size)
            self.size = 0


def read_only(address: int, size: int) -> None:
    """Whole pages that are mapped: a write faults from now on (mprotect(2)); reads go on meanwhile. Raises OSError."""
    if _LIBC.mprotect(address, size, mmap.PROT_READ) != 0:
        raise OSError(ctypes.get_errno(), f"mprotect of {size} bytes: {os.strerror(ctypes.get_errno())}")


class SaveRoom:
    """Host memory for saved KV: as much as was asked for at once, counted in the node's budget before it is taken."""

    def __init__(
        self,
        report: Callable[[int], None],
        lock: Callable[[Mapping], None] = lambda memory: None,
        unlock: Callable[[Mapping], None] = lambda memory: None,
    ) -> None:
        """`report(size)` tells the daemon, and raises where it refuses; `lock` and `unlock`: as `engine_patch.bus` has
        them, for each memory that is made."""
        self._report = report
        self._lock = lock
        self._unlock = unlock
        self._mapping: Mapping | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self._mapping.size if self._mapping is not None else 0

    def fit(self, size: int) -> Mapping:
        """At least `size` bytes. Where that is more than there was, it is other memory, and what lay in it is gone.

        Raises:
            DaemonRefused: NO_SPACE: the node's budget is spent; what there was stays.
            DaemonUnavailable: the daemon is away or silent.
        """
        if self._mapping is not None and self._mapping.size >= size:
            return self._mapping
        size = max(1, -(-size // _GRAIN)) * _GRAIN
        self._report(size)
        if self._mapping is not None:
            self._unlock(self._mapping)
            self._mapping.close()
            self._mapping = None
        self._mapping = Mapping(size)
        self._lock(self._mapping)
        return self._mapping


def open_master(client: Client, digest: str, timeout_s: float) -> Mapping | None:
    """The sealed master of `digest`, read-only; None: the daemon has none. Its descriptor is kept (`native.kept`)."""
    found = client.open_master(digest, timeout_s)
    if found is None:
        return None
    fd, size = found
    try:
        mapping = Mapping(size, fd, writable=False)
    except BaseException:
        os.close(fd)
        raise
    client.kept.put_master(digest, fd)
    return mapping


def close_master(client: Client, digest: str, master: Mapping, timeout_s: float) -> None:
    """Unmap it and tell the daemon, which may then evict it. Raises DaemonUnavailable: unmapped all the same."""
    master.close()
    client.kept.drop_master(digest)
    client.release_master(digest, timeout_s)


def new_master(client: Client, size: int, timeout_s: float) -> Mapping:
    """A master to be filled and then sealed by the same client; at least `size` bytes."""
    fd, whole = client.create_master(size, timeout_s)
    try:
        return Mapping(whole, fd)
    finally:
        os.close(fd)
