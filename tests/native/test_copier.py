"""What is little is copied at once by the caller, all else by threads of its own."""

from __future__ import annotations

import ctypes
import os

import pytest

from engine_patch.copier import FEW_BYTES, Copier


@pytest.mark.parametrize("size", [1, FEW_BYTES // 2, FEW_BYTES, 2 * FEW_BYTES])
def test_every_entry_is_copied(size: int) -> None:
    copier = Copier(())
    try:
        data = os.urandom(2 * size)
        source, target = ctypes.create_string_buffer(data, 2 * size), ctypes.create_string_buffer(2 * size)
        at, to = ctypes.addressof(source), ctypes.addressof(target)
        copier.copy([(to + size, at, size), (to, at + size, size)])
        assert target.raw == data[size:] + data[:size]
    finally:
        copier.close()


def test_little_needs_no_other_thread() -> None:
    copier = Copier(())
    copier.close()
    source, target = ctypes.create_string_buffer(b"kv"), ctypes.create_string_buffer(2)
    copier.copy([(ctypes.addressof(target), ctypes.addressof(source), 2)])
    assert target.raw == b"kv"
    with pytest.raises(RuntimeError):
        copier.copy([(ctypes.addressof(target), ctypes.addressof(source), FEW_BYTES + 1)])
