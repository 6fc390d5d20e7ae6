"""What is pulled: one decode rank's share of a request, tokens first, from scattered blocks into scattered blocks."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from transfer.kv.boxes import Box, boxes, runs
from transfer.kv.copies import Copies
from transfer.kv.layout import nhd
from transfer.kv.plan import plan_pull
from transfer.kv.reader import Reader, Span
from transfer.transports.deadline import Deadline

HEADS, HEAD_BYTES, BLOCK, LAYERS = 8, 256, 128, 8
MIB = 1 << 20


class Read(NamedTuple):
    """One layer from one prefill rank: the source's region, where ours begins, its size, and what is copied."""

    handle: int
    at: int
    size: int
    copies: Copies


class Work(NamedTuple):
    """`regions`: of the prefill ranks, back to back, `source` bytes; `into`: bytes of ours; `bytes`: what is moved."""

    reads: tuple[Read, ...]
    into: int
    regions: tuple[int, ...]
    bytes: int

    @property
    def source(self) -> int:
        return sum(self.regions)


def heterogeneous(prefill_tp: int, decode_tp: int, size: int) -> Work:
    """Decode rank 0's part, about `size` bytes of it, as the planner and the layouts say."""
    held = HEADS // decode_tp
    blocks = max(1, size // (2 * BLOCK * held * HEAD_BYTES * LAYERS))
    src, dst = (nhd(blocks, BLOCK, HEADS // tp, HEAD_BYTES) for tp in (prefill_tp, decode_tp))
    pulls = plan_pull(prefill_tp, decode_tp, HEADS, blocks, 0)
    ids = [random.Random(seed).sample(range(blocks), blocks) for seed in (1, 2)]
    copies = [Copies(boxes(pull, src, dst, *ids)) for pull in pulls]
    reads = tuple(
        Read(at * LAYERS + layer, layer * dst.extent, dst.extent, each)
        for layer in range(LAYERS)
        for at, each in enumerate(copies)
    )
    total = sum(read.copies.bytes for read in reads)
    return Work(reads, LAYERS * dst.extent, (src.extent,) * len(reads), total)


def contiguous(other: Work) -> Work:
    """As many bytes in as many reads, each one piece on both sides."""
    reads, at = [], 0
    for handle, read in enumerate(other.reads):
        length = read.copies.bytes
        reads.append(Read(handle, at, length, Copies((Box(0, 0, length, ()),))))
        at += length
    return Work(tuple(reads), at, tuple(read.copies.bytes for read in other.reads), at)


def descriptors(work: Work) -> tuple[int, int]:
    """Boxes that are sent, and the contiguous runs that they stand for."""
    return sum(len(read.copies) for read in work.reads), sum(len(runs(read.copies)) for read in work.reads)


class Lanes:
    """Reads as many at once as there are readers, as a `Puller` does. A context manager that ends its threads."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = tuple(readers)
        self._threads = ThreadPoolExecutor(len(readers))

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        for reader in self.readers:
            reader.close()

    def pull(self, work: Work, into: Span) -> None:
        """All reads; who is free takes the next."""
        left = iter(work.reads)
        for lane in [self._threads.submit(self._run, reader, left, into) for reader in self.readers]:
            lane.result()

    @staticmethod
    def _run(reader: Reader, left: Iterator[Read], into: Span) -> None:
        deadline = Deadline.after(120)
        for read in left:
            reader.read(read.handle, read.copies, Span(into.address + read.at, read.size), deadline, never)


def never() -> bool:
    return False


def copier(into: Span, source: Span, size: int) -> Callable[[], None]:
    """One thread's plain memcpy."""
    return lambda: void(ctypes.memmove(into.address, source.address, size))


def void(_: object) -> None:
    return None
