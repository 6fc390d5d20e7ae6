"""Boxes with what follows from them, worked out once: a request's layers are all read by the same ones. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from native._native import Boxes
from transfer.kv.boxes import Box, long_rows, split

ROW = 16 << 10
"""Rows from this length on leave from and arrive at their place, without staging on that side."""


class Chunk:
    """A part of the boxes that is staged, sent and placed at once."""

    def __init__(self, boxes: Sequence[Box]) -> None:
        self.boxes = boxes
        self.bytes = sum(box.bytes for box in boxes)

    @cached_property
    def whole(self) -> Boxes:
        """From the source to its place; either half of it, gathered to a staging buffer and scattered from there."""
        return Boxes(self.boxes)

    @cached_property
    def src_rows(self) -> list[tuple[int, int]] | None:
        """Long enough to be sent from where they lie, or None."""
        return long_rows(self.boxes, ROW, dst=False)

    @cached_property
    def dst_rows(self) -> list[tuple[int, int]] | None:
        """Long enough to be received to where they belong, or None."""
        return long_rows(self.boxes, ROW, dst=True)


class Copies(tuple[Box, ...]):
    """Boxes. Immutable; what is worked out is kept."""

    @classmethod
    def of(cls, boxes: Sequence[Box]) -> Copies:
        return boxes if isinstance(boxes, cls) else cls(boxes)

    @cached_property
    def bytes(self) -> int:
        return sum(box.bytes for box in self)

    @cached_property
    def src_end(self) -> int:
        """One past the last byte that is read; -1: an offset or a row's length is none."""
        ends = (box.src + sum((dim.steps - 1) * dim.src_stride for dim in box.dims) + box.length for box in self)
        return -1 if any(box.src < 0 or box.length < 1 for box in self) else max(ends, default=0)

    @cached_property
    def dst_end(self) -> int:
        """The same of what is written."""
        ends = (box.dst + sum((dim.steps - 1) * dim.dst_stride for dim in box.dims) + box.length for box in self)
        return -1 if any(box.dst < 0 for box in self) else max(ends, default=0)

    def chunks(self, limit: int) -> Iterable[Chunk]:
        """As `split`."""
        if limit not in self._cut:
            self._cut[limit] = [Chunk(part) for part in split(self, limit)]
        return self._cut[limit]

    @cached_property
    def _cut(self) -> dict[int, list[Chunk]]:
        return {}
