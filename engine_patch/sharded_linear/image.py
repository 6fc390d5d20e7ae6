"""All tensors of a layer as one run of bytes: a header that says whose they are and when, then each tensor as it lies
in memory, strides and all, so that what kernels have rearranged stays rearranged."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

import torch

HEADER = 64
ALIGN = 64
_STAMP = struct.Struct("<QQ")


class Part(NamedTuple):
    """Of one tensor: its place in the image in bytes, `dtype`, `shape`, `stride` in elements."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Layout(NamedTuple):
    """`size`: bytes of the whole image. Equal for all layers of a series."""

    size: int
    parts: tuple[tuple[str, Part], ...]


def layout(tensors: Mapping[str, torch.Tensor]) -> Layout:
    """Of a layer's tensors, by name. Raises ValueError where one of them has holes or overlaps itself."""
    at, parts = HEADER, []
    for name in sorted(tensors):
        tensor = tensors[name]
        if not dense(tensor):
            raise ValueError(f"{name} does not lie in one piece: {tuple(tensor.shape)} by {tensor.stride()}")
        parts.append((name, Part(at, tensor.dtype, tuple(tensor.shape), tensor.stride())))
        at += -(-tensor.numel() * tensor.element_size() // ALIGN) * ALIGN
    return Layout(at, tuple(parts))


def dense(tensor: torch.Tensor) -> bool:
    """Whether its elements fill one run of memory, in whatever order."""
    expected = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def views(image: torch.Tensor, of: Layout) -> dict[str, torch.Tensor]:
    """The tensors in a flat uint8 image of this layout."""
    found = {}
    for name, part in of.parts:
        count = 1
        for length in part.shape:
            count *= length
        raw = image[part.offset : part.offset + count * part.dtype.itemsize]
        found[name] = raw.view(part.dtype).as_strided(part.shape, part.stride)
    return found


def stamp(image: torch.Tensor, series: int, step: int) -> None:
    """Write into the header of which series and step this image is."""
    image[: _STAMP.size] = torch.frombuffer(bytearray(_STAMP.pack(series, step)), dtype=torch.uint8)


def stamped(image: torch.Tensor) -> tuple[int, int]:
    """Series and step in the header."""
    series, step = _STAMP.unpack(bytes(image[: _STAMP.size].numpy()))
    return series, step
