"""Memory of this process by address, looked at without the risk of a fault."""

from __future__ import annotations

import ctypes
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
