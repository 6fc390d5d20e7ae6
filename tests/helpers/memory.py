"""Memory of this process by address, looked at without the risk of a fault."""

from __future__ import annotations

import ctypes
import gc
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

_libc = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def readable(address: int) -> bool:
    """Whether the byte at `address` can be read; asks the kernel, so that nothing faults."""
    byte = ctypes.create_string_buffer(1)
    here, there = _Iovec(ctypes.addressof(byte), 1), _Iovec(address, 1)
    pid = ctypes.c_int(_libc.getpid())
    return bool(_libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) == 1)


class _Mallinfo(ctypes.Structure):
    """mallinfo2(3), of all arenas."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    )


def heap() -> int:
    """Bytes that are allocated in this process, garbage excepted: neither what the allocator keeps of what was freed
    counts, nor where it lies."""
    gc.collect()
    mallinfo = _libc.mallinfo2
    mallinfo.restype = _Mallinfo
    told = mallinfo()
    return int(told.uordblks + told.hblkhd)


def read(address: int, length: int) -> bytes:
    return ctypes.string_at(address, length)


def write(address: int, data: bytes) -> None:
    ctypes.memmove(address, data, len(data))


@contextmanager
def buffer(size: int) -> Iterator[int]:
    """Address of `size` zero bytes."""
    memory = mmap.mmap(-1, size)
    view = ctypes.c_char.from_buffer(memory)
    try:
        yield ctypes.addressof(view)
    finally:
        del view
        memory.close()
