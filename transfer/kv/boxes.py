"""A plan turned into strided copies, and into the fewest contiguous runs. Pure.

A box is a nest of at most four loops around one contiguous row. A whole request usually is one box a layer and prefill
rank, however many runs it holds, so descriptions stay small; only transports that need runs expand them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

from transfer.kv.layout import KvLayout, LayoutRefused, unit_tokens
from transfer.kv.plan import Pull


class Dim(NamedTuple):
    """One loop: `steps` steps, each of so many bytes on either side."""

    steps: int
    dst_stride: int
    src_stride: int


class Box(NamedTuple):
    """Rows of `length` bytes from `src` to `dst` (offsets from a layer's first byte), over `dims`, outermost first."""

    dst: int
    src: int
    length: int
    dims: tuple[Dim, ...]

    @property
    def rows(self) -> int:
        rows = 1
        for dim in self.dims:
            rows *= dim.steps
        return rows

    @property
    def bytes(self) -> int:
        return self.rows * self.length


class Run(NamedTuple):
    """`length` bytes that are contiguous on both sides; offsets from a layer's first byte."""

    dst: int
    src: int
    length: int


def boxes(pull: Pull, src: KvLayout, dst: KvLayout, src_blocks: Sequence[int], dst_blocks: Sequence[int]) -> list[Box]:
    """The copies of one pull in one layer. The pull counts units of `unit_tokens`; block ids are in request order.

    Raises:
        LayoutRefused: the layouts do not fit, a head or block lies outside of its layout, or blocks are too few.
    """
    tokens = unit_tokens(src, dst)
    _check(pull, src, dst)
    starts = [
        (_start(dst, dst_blocks, unit, tokens, pull.dst_head), _start(src, src_blocks, unit, tokens, pull.src_head))
        for unit in range(pull.block_lo, pull.block_hi)
    ]
    slots = 1 if src.packed else tokens
    inner = [Dim(pull.num_heads, dst.head_stride, src.head_stride), Dim(slots, dst.slot_stride, src.slot_stride)]
    return [
        _normal(dst_at + dst_plane, src_at + src_plane, src.slot_bytes, [step, planes, *inner])
        for dst_at, src_at, step in _stretches(starts)
        for dst_plane, src_plane, planes in _stretches(list(zip(dst.planes, src.planes, strict=True)))
    ]


def runs(boxes: Iterable[Box]) -> list[Run]:
    """The fewest contiguous runs, by destination: neighbours on both sides are one run."""
    merged: list[Run] = []
    for run in sorted(run for box in boxes for run in _rows(box)):
        last = merged[-1] if merged else None
        if last and last.dst + last.length == run.dst and last.src + last.length == run.src:
            merged[-1] = Run(last.dst, last.src, last.length + run.length)
        else:
            merged.append(run)
    return merged


def split(boxes: Iterable[Box], limit: int) -> list[list[Box]]:
    """The same copies, in order, in lists of at most `limit` bytes each (a positive number)."""
    chunks: list[list[Box]] = []
    room = 0
    for box in boxes:
        for part in _parts(box, limit):
            if part.bytes > room:
                chunks.append([])
                room = limit
            chunks[-1].append(part)
            room -= part.bytes
    return chunks


def long_rows(boxes: Iterable[Box], least: int, *, dst: bool) -> list[tuple[int, int]] | None:
    """(offset, bytes) on one side, in the order of a staging buffer, where rows of that side are `least` bytes and more
    when its neighbours are joined, or where there is only one; None where they are shorter."""
    rows: list[tuple[int, int]] = []
    for box in boxes:
        length, dims = box.length, list(box.dims)
        while dims and (dims[-1].dst_stride if dst else dims[-1].src_stride) == length:
            length *= dims.pop().steps
        if length < least and (rows or dims):
            return None
        starts = [box.dst if dst else box.src]
        for dim in dims:
            stride = dim.dst_stride if dst else dim.src_stride
            starts = [start + step * stride for start in starts for step in range(dim.steps)]
        rows += [(start, length) for start in starts]
    return None if len(rows) > 1 and rows[0][1] < least else rows


def _check(pull: Pull, src: KvLayout, dst: KvLayout) -> None:
    for side, layout, head in (("src", src, pull.src_head), ("dst", dst, pull.dst_head)):
        if head < 0 or head + pull.num_heads > layout.heads:
            raise LayoutRefused(
                f"{side}_head {head} + {pull.num_heads} is outside of the layout's {layout.heads} heads"
            )


def _start(layout: KvLayout, blocks: Sequence[int], unit: int, tokens: int, head: int) -> int:
    index, token = divmod(unit * tokens, layout.block_tokens)
    if index >= len(blocks):
        raise LayoutRefused(f"unit {unit} lies in block {index} of the request, which has only {len(blocks)}")
    if not 0 <= blocks[index] < layout.num_blocks:
        raise LayoutRefused(f"block {blocks[index]} is outside of the layout's {layout.num_blocks} blocks")
    return blocks[index] * layout.block_stride + token * layout.slot_stride + head * layout.head_stride


def _stretches(starts: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, Dim]]:
    """Maximal stretches that go on by one rising step on either side, greedily."""
    at = 0
    while at < len(starts):
        (dst, src), count = starts[at], 1
        steps = (0, 0)
        while at + count < len(starts):
            before, after = starts[at + count - 1], starts[at + count]
            step = (after[0] - before[0], after[1] - before[1])
            if min(step) <= 0 or (count > 1 and step != steps):
                break
            steps, count = step, count + 1
        yield dst, src, Dim(count, *steps)
        at += count


def _normal(dst: int, src: int, length: int, dims: list[Dim]) -> Box:
    """Loops that only make the row longer are folded into it; the others are sorted so that writing goes upwards."""
    left = sorted((dim for dim in dims if dim.steps > 1), key=lambda dim: dim.dst_stride)
    while left and left[0].dst_stride == left[0].src_stride == length:
        length *= left.pop(0).steps
    return Box(dst, src, length, tuple(reversed(left)))


def _rows(box: Box) -> Iterator[Run]:
    for steps in product(*(range(dim.steps) for dim in box.dims)):
        dst = box.dst + sum(step * dim.dst_stride for step, dim in zip(steps, box.dims, strict=True))
        src = box.src + sum(step * dim.src_stride for step, dim in zip(steps, box.dims, strict=True))
        yield Run(dst, src, box.length)


def _parts(box: Box, limit: int) -> Iterator[Box]:
    """Cut along the outermost loop as coarsely as `limit` allows; a row that is longer is cut itself."""
    if box.bytes <= limit:
        yield box
        return
    if not box.dims:
        for at in range(0, box.length, limit):
            yield Box(box.dst + at, box.src + at, min(limit, box.length - at), ())
        return
    outer, inner = box.dims[0], box.dims[1:]
    one = Box(box.dst, box.src, box.length, inner).bytes
    step = max(1, limit // one)
    for at in range(0, outer.steps, step):
        count = min(step, outer.steps - at)
        dst, src = box.dst + at * outer.dst_stride, box.src + at * outer.src_stride
        if count > 1:
            yield Box(dst, src, box.length, (outer._replace(steps=count), *inner))
        else:
            yield from _parts(Box(dst, src, box.length, inner), limit)
