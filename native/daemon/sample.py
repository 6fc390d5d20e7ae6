"""A canary of a file's content: samples of it, under a millisecond per GiB."""

from __future__ import annotations

import ctypes
import mmap

from native import _native


def sample(descriptor: int, size: int) -> int:
    """64-bit digest of samples of the first `size` bytes, as `_native.sample_digest`. Releases the GIL: for a thread.

    Raises:
        OSError, ValueError: it cannot be mapped, or is shorter.
    """
    # Privately and writable, because that is how ctypes finds the address; nothing is written, so nothing is copied.
    with mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        view = ctypes.c_char.from_buffer(mapped)
        try:
            return _native.sample_digest([(ctypes.addressof(view), size)])
        finally:
            del view
