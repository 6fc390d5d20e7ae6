"""Where the K and V bytes of one layer lie on one rank: a few offsets and strides that describe every layout in use."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import msgspec

Planes = Literal["separate", "paired", "joint"]


class LayoutRefused(ValueError):
    """A layout that overlaps itself, or two that cannot be turned into each other; the message names the field."""


class KvLayout(msgspec.Struct, frozen=True):
    """One layer's cache. Byte 0 of slot s of head h of block b in plane p lies at
    `planes[p] + b * block_stride + h * head_stride + s * slot_stride` from the layer's first byte.

    A slot is what may be moved on its own: one token of one head (K or V), or, where a backend packs the tokens of a
    block in a way of its own (`slots` = 1), all of them. Everything is counted in bytes except `num_blocks`, `heads`
    (on this rank), `block_tokens` and `slots` (1 or `block_tokens`).
    """

    planes: tuple[int, ...]
    num_blocks: int
    heads: int
    block_tokens: int
    slots: int
    block_stride: int
    head_stride: int
    slot_stride: int
    slot_bytes: int

    def __post_init__(self) -> None:
        for name in ("num_blocks", "heads", "block_tokens", "slots", "slot_bytes"):
            if getattr(self, name) < 1:
                raise LayoutRefused(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.slots not in (1, self.block_tokens):
            raise LayoutRefused(f"slots is {self.slots}: it must be 1 (packed) or block_tokens {self.block_tokens}")
        if not self.planes or list(self.planes) != sorted(set(self.planes)) or self.planes[0] < 0:
            raise LayoutRefused(f"planes {self.planes} must be offsets in rising order")
        self._check_disjoint()

    @property
    def packed(self) -> bool:
        """A block of a head can only be moved whole."""
        return self.slots != self.block_tokens

    @property
    def block_bytes(self) -> int:
        """Payload of one block: all planes, heads and slots."""
        return len(self.planes) * self.heads * self.slots * self.slot_bytes

    @property
    def extent(self) -> int:
        """Bytes from the layer's first to just past its last."""
        return self.planes[-1] + (self.num_blocks - 1) * self.block_stride + self._inside()

    def _inside(self) -> int:
        """Bytes that one block takes in one plane, gaps included."""
        return (self.heads - 1) * self.head_stride + (self.slots - 1) * self.slot_stride + self.slot_bytes

    def _check_disjoint(self) -> None:
        """Strides must nest: each at least as wide as everything inside of it."""
        axes = sorted([(self.slot_stride, self.slots), (self.head_stride, self.heads)])
        # Planes closer together than a block lie inside of it; they may lie inside a head or a slot too.
        near = min((high - low for low, high in pairwise(self.planes)), default=0)
        far = near >= self.num_blocks * self.block_stride
        if near and not far:
            axes = sorted([*axes, (near, len(self.planes))])
            if any(high - low != near for low, high in pairwise(self.planes)):
                raise LayoutRefused(f"planes {self.planes} inside a block must lie at equal distances")
        wide = self.slot_bytes
        for stride, count in [*axes, (self.block_stride, self.num_blocks)]:
            if count > 1 and stride < wide:
                raise LayoutRefused(f"a stride of {stride} is too short for the {wide} bytes inside of it")
            wide = stride * count if count > 1 else max(wide, stride)


def nhd(num_blocks: int, block_tokens: int, heads: int, head_bytes: int, planes: Planes = "separate") -> KvLayout:
    """Tokens before heads, `[…, tokens, heads, head]`. Planes: `separate` is `[2, blocks, …]`, `paired` is
    `[blocks, 2, …]`, `joint` has K and V of a token and head side by side. `head_bytes`: of K alone."""
    return _dense(num_blocks, block_tokens, heads, head_bytes, planes, heads_first=False)


def hnd(num_blocks: int, block_tokens: int, heads: int, head_bytes: int, planes: Planes = "separate") -> KvLayout:
    """Heads before tokens, `[…, heads, tokens, head]`; arguments as in `nhd`."""
    return _dense(num_blocks, block_tokens, heads, head_bytes, planes, heads_first=True)


def cpu_packed(
    num_blocks: int, block_tokens: int, heads: int, cell_bytes: int, *, block_stride: int | None = None
) -> KvLayout:
    """vLLM's CPU attention: `[blocks, heads, cell]`; a cell holds K, then V, of all tokens of the block, K packed for
    the instruction set (vllm/v1/attention/backends/cpu_attn.py). So heads can be sliced and tokens cannot."""
    return KvLayout(
        planes=(0,),
        num_blocks=num_blocks,
        heads=heads,
        block_tokens=block_tokens,
        slots=1,
        block_stride=heads * cell_bytes if block_stride is None else block_stride,
        head_stride=cell_bytes,
        slot_stride=cell_bytes,
        slot_bytes=cell_bytes,
    )


def latent(num_blocks: int, block_tokens: int, width: int) -> KvLayout:
    """MLA: `[blocks, tokens, width]`, one latent head of `width` bytes a token and no second plane."""
    return KvLayout((0,), num_blocks, 1, block_tokens, block_tokens, block_tokens * width, width, width, width)


def unit_tokens(src: KvLayout, dst: KvLayout) -> int:
    """Tokens of a unit: the largest stretch that lies inside one block on both sides. With equal block sizes, a block.

    Raises:
        LayoutRefused: the two cannot be turned into each other by moving slots.
    """
    if src.packed != dst.packed:
        raise LayoutRefused("slots: one side packs the tokens of a block and the other does not")
    if src.packed and src.block_tokens != dst.block_tokens:
        raise LayoutRefused(
            f"block_tokens {src.block_tokens} and {dst.block_tokens} differ, which a packed layout does not allow: "
            "start both engines with the same --block-size"
        )
    if len(src.planes) != len(dst.planes) or src.slot_bytes != dst.slot_bytes:
        raise LayoutRefused(
            f"planes × slot_bytes is {len(src.planes)} × {src.slot_bytes} on one side and {len(dst.planes)} × "
            f"{dst.slot_bytes} on the other: the engines' models or KV dtypes differ"
        )
    return math.gcd(src.block_tokens, dst.block_tokens)


def _dense(
    num_blocks: int, block_tokens: int, heads: int, head_bytes: int, planes: Planes, *, heads_first: bool
) -> KvLayout:
    cell = head_bytes * (2 if planes == "joint" else 1)
    plane = block_tokens * heads * cell
    block = plane * (2 if planes == "paired" else 1)
    second = {"separate": num_blocks * block, "paired": plane, "joint": head_bytes}[planes]
    head, slot = (block_tokens * cell, cell) if heads_first else (cell, heads * cell)
    return KvLayout((0, second), num_blocks, heads, block_tokens, block_tokens, block, head, slot, head_bytes)
