"""Reading through Mooncake's TransferEngine (0.3.13): one-sided, so the source's process has no part in it.

It moves contiguous slices only. Rows that are long enough are slices that land in their place; short ones would be
millions (4 → 2 of 32,000 tokens with tokens first are 8 million), so the stretch of the source that holds them is read
into a staging buffer and placed from there. What the engine does and does not do was measured (docs/kv-transfer.md):
a batch of over 1024 slices may fail with part of it landed and leave the engine useless, so batches are smaller and an
engine that failed is made anew. Integrity is the fabric's: TCP's or RDMA's own checks, nothing of ours.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import NamedTuple, Protocol

from native._native import Boxes
from transfer.errors import PeerLost, TransferError
from transfer.kv.boxes import Box, Dim, Run, runs
from transfer.kv.copies import Copies
from transfer.kv.reader import ReadRefused, Span, Stopped, check_source, check_target, place
from transfer.transports.deadline import Deadline

SLICES = 1024
"""Slices in a batch."""
LONG = 16 << 10
"""Rows from this length on are slices of their own."""
STAGE = 8 << 20
"""Bytes of the staging buffer, and of a batch."""
WASTE = 8
"""At most so many bytes are read for one that is wanted; beyond that rows are slices, however short."""
_QUEUES = ("MC_TCP_MAX_QUEUED_TRANSFERS_PER_PEER", "MC_TCP_MAX_PENDING_ADMISSIONS_PER_PEER")


class Engine(Protocol):
    """What is used of `mooncake.engine.TransferEngine`; 0 is success."""

    def initialize(self, host: str, metadata: str, protocol: str, device: str) -> int: ...
    def get_rpc_port(self) -> int: ...
    def register_memory(self, address: int, length: int) -> int: ...
    def unregister_memory(self, address: int) -> int: ...
    def batch_transfer_sync_read(self, peer: str, local: list[int], remote: list[int], lengths: list[int]) -> int: ...


class Piece(NamedTuple):
    """One contiguous read of `length` bytes at `src`: to `dst` itself, or, with `rows`, staged and placed by them
    (their sources counted from `src`)."""

    src: int
    dst: int
    length: int
    rows: tuple[Box, ...]


def pieces(boxes: Sequence[Box]) -> Iterator[Piece]:
    """Boxes as contiguous reads of at most `STAGE` bytes: rows of `LONG` bytes and more go where they belong, shorter
    ones by stretches of the source that hold them. Pure."""
    for box in boxes:
        outer, middle, width, inner = _cut(box)
        if not inner and width == 1:
            yield from (Piece(run.src, run.dst, run.length, ()) for run in _short(runs([box])))
            continue
        for *steps, first in product(*(range(dim.steps) for dim in outer), range(0, middle.steps, width)):
            at = list(zip((*steps, first), (*outer, middle), strict=True))
            src = box.src + sum(step * dim.src_stride for step, dim in at)
            dst = box.dst + sum(step * dim.dst_stride for step, dim in at)
            part = middle._replace(steps=min(width, middle.steps - first))
            rows = Box(dst, src, box.length, (part, *inner) if part.steps > 1 else inner)
            yield Piece(src, dst, _span(rows), (rows._replace(src=0),))


def serve(engine: Engine, regions: Mapping[int, Span]) -> None:
    """Let others read `regions`. Raises TransferError."""
    for region in regions.values():
        _register(engine, region)


def make_engine(host: str, protocol: str = "tcp") -> Engine:
    """An engine of its own that needs no metadata server: its peers call it `host:get_rpc_port()`.

    Raises:
        TransferError: the wheel, a library of it or the protocol is not there.
    """
    for name in _QUEUES:
        os.environ.setdefault(name, "65535")
    try:
        from mooncake.engine import TransferEngine
    except ImportError as error:
        raise TransferError(
            f"Mooncake cannot be loaded: {error}",
            remedy="pip install 'vnpu[mooncake]', and Debian's libibverbs1, which it needs for TCP too",
        ) from error
    engine: Engine = TransferEngine()
    if engine.initialize(host, "P2PHANDSHAKE", protocol, "") != 0:
        raise TransferError(f"Mooncake: {protocol} at {host} could not be initialised", remedy="see its log on stderr")
    return engine


class MooncakeReader:
    """`peer`: `host:port` of the source's engine. `regions`: where the source's regions lie in *its* memory, as it says
    in its handshake: the one place where an address comes from a peer, bounded by the region's size, used by the
    source's engine only, which checks it against what is registered there."""

    def __init__(
        self, make: Callable[[], Engine], peer: str, regions: Mapping[int, Span], targets: Sequence[Span]
    ) -> None:
        """`make`: an engine, now and after each failure; `targets`: memory that may be read into.

        Raises:
            TransferError: an engine or a registration fails.
        """
        self._make, self._peer = make, peer
        self._regions, self._targets = dict(regions), list(targets)
        self._stage = ctypes.create_string_buffer(STAGE)
        self._stage_at = ctypes.addressof(self._stage)
        self._engine: Engine | None = self._fresh()

    def read(self, handle: int, boxes: Sequence[Box], into: Span, deadline: Deadline, stop: Callable[[], bool]) -> int:
        """As `Reader.read`. A batch that is under way ends by itself: a dead peer is noticed after about a second."""
        region = self._regions.get(handle)
        if region is None:
            raise ReadRefused(f"the source has no region {handle}")
        copies = Copies.of(boxes)
        check_source(copies, region.size, handle)
        check_target(copies, into)
        moved = 0
        for batch in _batches(pieces(boxes)):
            if stop():
                raise Stopped("reading was stopped")
            deadline.left()
            moved += self._run(batch, region, into)
        return moved

    @contextmanager
    def target(self, span: Span) -> Iterator[None]:
        """`span` may be read into meanwhile. Raises TransferError where it cannot be registered."""
        self._targets.append(span)
        if self._engine is not None:
            _register(self._engine, span)
        try:
            yield
        finally:
            self._targets.remove(span)
            if self._engine is not None:
                self._engine.unregister_memory(span.address)

    def abort(self) -> None:
        """As `Reader.abort`: a batch ends by itself."""

    def close(self) -> None:
        """As `Reader.close`."""
        if self._engine is not None:
            for span in self._spans():
                self._engine.unregister_memory(span.address)
            self._engine = None

    def _spans(self) -> list[Span]:
        return [*self._targets, Span(self._stage_at, STAGE)]

    def _fresh(self) -> Engine:
        engine = self._make()
        for span in self._spans():
            _register(engine, span)
        return engine

    def _run(self, batch: list[Piece], region: Span, into: Span) -> int:
        local, at = [], 0
        for piece in batch:
            local.append(self._stage_at + at if piece.rows else into.address + piece.dst)
            at += piece.length if piece.rows else 0
        if self._engine is None:
            self._engine = self._fresh()
        remote = [region.address + piece.src for piece in batch]
        lengths = [piece.length for piece in batch]
        if self._engine.batch_transfer_sync_read(self._peer, local, remote, lengths) != 0:
            self._engine = None  # measured: one that has failed may fail for ever
            raise PeerLost(f"Mooncake: {len(batch)} slices from {self._peer} failed, part of them may have landed")
        for piece, address in zip(batch, local, strict=True):
            if piece.rows:
                place(Boxes(piece.rows), into, Span(address, piece.length))
        return sum(sum(row.bytes for row in piece.rows) if piece.rows else piece.length for piece in batch)


def _register(engine: Engine, span: Span) -> None:
    if engine.register_memory(span.address, span.size) != 0:
        raise TransferError(f"Mooncake cannot register {span.size} bytes", remedy="see its log on stderr")


def _short(found: Sequence[Run]) -> Iterator[Run]:
    for run in found:
        for at in range(0, run.length, STAGE):
            yield Run(run.dst + at, run.src + at, min(STAGE, run.length - at))


def _span(box: Box) -> int:
    return sum((dim.steps - 1) * dim.src_stride for dim in box.dims) + box.length


def _cut(box: Box) -> tuple[tuple[Dim, ...], Dim, int, tuple[Dim, ...]]:
    """Loops to walk; the loop of which so many steps are staged at once; loops that are staged whole.

    As much is staged as fits the stage and wastes little; one step and nothing inside where rows are long or nothing
    fits.
    """
    order = (Dim(1, 0, 0), *sorted(box.dims, key=lambda dim: -dim.src_stride))
    if box.length >= LONG:
        return order[:-1], order[-1], 1, ()
    at = next(at for at in range(1, len(order) + 1) if _fits(Box(0, 0, box.length, order[at:])))
    middle, inner = order[at - 1], order[at:]
    widths = range(middle.steps, 1, -1)
    staged = (Box(0, 0, box.length, (middle._replace(steps=width), *inner)) for width in widths)
    width = next((rows.dims[0].steps for rows in staged if _fits(rows)), 1)
    return order[: at - 1], middle, width, inner


def _fits(rows: Box) -> bool:
    return _span(rows) <= min(STAGE, WASTE * rows.bytes)


def _batches(found: Iterator[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    room = STAGE
    for piece in found:
        if batch and (len(batch) == SLICES or piece.length > room):
            yield batch
            batch, room = [], STAGE
        batch.append(piece)
        room -= piece.length
    if batch:
        yield batch
