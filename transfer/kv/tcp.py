"""Reading over framed TCP: the request is a few boxes, the answer is a stream of checked chunks.

The source gathers rows into a chunk that stays in its cache, sums it and sends it; the reader receives it into one that
stays in its own, and places the rows past the cache. So heads that are split or joined cost no extra pass over memory
on either side, and only the wanted bytes travel. A side on which rows are long needs no staging. Both sides cut alike
(`split`), so a request names no chunks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import msgspec

from native import _native
from transfer.errors import PeerViolation
from transfer.kv.boxes import Box, Dim, gathering, long_rows, placing, split
from transfer.kv.messages import Answer, Say, decode_answer, encode
from transfer.kv.reader import CHUNK, ReadRefused, Span, Stopped, check_source, check_target, place
from transfer.netloader.guard import Guard, Switching
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.frame import Kind

SERVICE = b"kv"
IDLE_S = 120.0
"""A reader that asks for nothing for so long is taken to be gone: it beats far more often."""
ROW = 16 << 10
"""Rows from this length on leave from and arrive at their place, without staging on that side."""
STALL_S = 10.0
"""A chunk that is not taken within this ends the connection."""

_Bytes = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]
_Steps = Annotated[int, msgspec.Meta(ge=1, lt=1 << 32)]


class Loop(msgspec.Struct, frozen=True, array_like=True):
    """The source's half of a `Dim`."""

    steps: _Steps
    stride: _Bytes


class Rows(msgspec.Struct, frozen=True, array_like=True):
    """The source's half of a `Box`."""

    at: _Bytes
    length: Annotated[int, msgspec.Meta(ge=1, lt=1 << 48)]
    loops: Annotated[tuple[Loop, ...], msgspec.Meta(max_length=4)]


class Read(msgspec.Struct, frozen=True, tag=True):
    """Send these rows of region `handle`, as DATA frames of at most CHUNK bytes."""

    handle: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    rows: Annotated[tuple[Rows, ...], msgspec.Meta(max_length=1 << 16)]


class No(msgspec.Struct, frozen=True, tag=True):
    """Instead of the data."""

    reason: Annotated[str, msgspec.Meta(max_length=300)]


_request: msgspec.msgpack.Decoder[Read | Say] = msgspec.msgpack.Decoder(Read | Say)
_no = msgspec.msgpack.Decoder(No)


class Stage:
    """CHUNK bytes that stay in the cache."""

    def __init__(self) -> None:
        self._memory = ctypes.create_string_buffer(CHUNK + 63)
        self.address = -(-ctypes.addressof(self._memory) // 64) * 64

    def span(self, size: int) -> Span:
        return Span(self.address, size)


class KvServer:
    """What a prefill rank does for one client at a time: `Listener(host, port, trust, SERVICE, server.serve)`."""

    def __init__(
        self, regions: Mapping[int, Span], answer: Callable[[Say], Answer], guard: Guard | None = None
    ) -> None:
        """`regions`: what may be read, by handle; `answer`: `Source.receive`, from any thread; `guard`: the memory is
        there while it is open."""
        self._regions = regions
        self._answer = answer
        self._guard = guard or Guard()

    def serve(self, channel: Channel) -> None:
        """Until the client goes. Raises TransferError, as the listener expects."""
        stage = Stage()
        while True:
            _, body = channel.receive(Deadline.after(IDLE_S))
            try:
                request = _request.decode(body)
            except ValueError as error:
                raise PeerViolation(f"a request that is none: {error}", remedy="run one vNPU on both sides") from error
            if isinstance(request, Read):
                try:
                    with self._guard.reading(channel.abort):
                        self._send(channel, request, stage)
                except Switching as asleep:
                    channel.send(encode(No(str(asleep)[:300])), Deadline.after(STALL_S))
            else:
                channel.send(encode(self._answer(request)), Deadline.after(STALL_S))

    def _send(self, channel: Channel, request: Read, stage: Stage) -> None:
        boxes = [_box(rows) for rows in request.rows]
        region = self._regions.get(request.handle)
        try:
            if region is None:
                raise ReadRefused(f"there is no region {request.handle}")
            check_source(boxes, region.size, request.handle)
        except ReadRefused as refused:
            channel.send(encode(No(str(refused)[:300])), Deadline.after(STALL_S))
            return
        position = 0
        for chunk in split(boxes, CHUNK):
            size = sum(box.bytes for box in chunk)
            channel.pace(size)
            rows = _at(region, long_rows(chunk, ROW, dst=False))
            if rows is None:
                place(gathering(chunk), stage.span(size), region, "memcpy")
                rows = [(stage.address, size)]
            total = 0
            for address, length in rows:
                total = _native.crc32c(address, length, total)
            channel.send_rows(rows, total, Deadline.after(STALL_S), position=position)
            position += size


class TcpReader:
    """Connects when it is first asked, and anew after an error."""

    def __init__(self, connect: Callable[[Deadline], Channel]) -> None:
        """`connect`: a channel to the source's `SERVICE` (`transfer.transports.dial`)."""
        self._connect = connect
        self._channel: Channel | None = None
        self._stage = Stage()

    def read(self, handle: int, boxes: Sequence[Box], into: Span, deadline: Deadline, stop: Callable[[], bool]) -> int:
        """As `Reader.read`."""
        check_target(boxes, into)
        if not boxes:
            return 0
        try:
            channel = self._open(deadline)
            channel.send(encode(Read(handle, tuple(_rows(box) for box in boxes))), deadline)
            moved = 0
            for chunk in split(boxes, CHUNK):
                if stop():
                    raise Stopped("reading was stopped")
                moved += self._take(channel, chunk, into, moved, deadline)
        except ReadRefused:
            raise
        except BaseException:
            self.close()  # what else is on its way belongs to nobody
            raise
        return moved

    def ask(self, say: Say, deadline: Deadline) -> Answer:
        """One message of the session, and its answer. Raises PeerLost, PeerViolation."""
        try:
            channel = self._open(deadline)
            channel.send(encode(say), deadline)
            return decode_answer(channel.receive(deadline)[1])
        except ValueError as error:
            self.close()
            raise PeerViolation(f"an answer that is none: {error}") from error
        except BaseException:
            self.close()
            raise

    def abort(self) -> None:
        """As `Reader.abort`."""
        channel = self._channel
        if channel is not None:
            channel.abort()

    def close(self) -> None:
        """As `Reader.close`."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _open(self, deadline: Deadline) -> Channel:
        if self._channel is None:
            self._channel = self._connect(deadline)
        return self._channel

    def _take(self, channel: Channel, chunk: list[Box], into: Span, position: int, deadline: Deadline) -> int:
        size = sum(box.bytes for box in chunk)
        header = channel.head(deadline)
        if header.kind is Kind.MESSAGE:
            body = channel.body(header, deadline)
            try:
                raise ReadRefused(_no.decode(body).reason)
            except ValueError as error:
                raise PeerViolation("a message that is none where data was due") from error
        if (header.length, header.position) != (size, position):
            raise PeerViolation(f"{header.length} bytes at {header.position} came, {size} at {position} were due")
        rows = _at(into, long_rows(chunk, ROW, dst=True))
        if rows is not None:
            channel.into_rows(header, rows, deadline)
            return size
        channel.into(header, self._stage.address, deadline)
        return place(placing(chunk), into, self._stage.span(size))


def _at(span: Span, rows: list[tuple[int, int]] | None) -> list[tuple[int, int]] | None:
    return None if rows is None else [(span.address + at, length) for at, length in rows]


def _rows(box: Box) -> Rows:
    return Rows(box.src, box.length, tuple(Loop(dim.steps, dim.src_stride) for dim in box.dims))


def _box(rows: Rows) -> Box:
    return Box(0, rows.at, rows.length, tuple(Dim(loop.steps, 0, loop.stride) for loop in rows.loops))
