"""What every process of this benchmark agrees on."""

from __future__ import annotations

from transfer.netloader.identity import Identity
from transfer.netloader.manifest import BLOCK, Extent, layout_digest

__all__ = ["BLOCK", "EXTENT", "KEY", "LOCAL", "extents", "identity"]

KEY = b"weight_stream: not a secret"
LOCAL = "127.0.0.1"
EXTENT = 32 << 20
"""Bytes of one tensor: a linear layer of a model of 8 B parameters."""


def extents(size: int) -> tuple[Extent, ...]:
    """`size` bytes, a multiple of `EXTENT`."""
    return tuple(Extent(f"layer{n}", EXTENT, n * EXTENT) for n in range(size // EXTENT))


def identity(size: int) -> Identity:
    return Identity(
        model="benchmark", dtype="bfloat16", vllm="none", kernels="none", layout=layout_digest(extents(size))
    )
