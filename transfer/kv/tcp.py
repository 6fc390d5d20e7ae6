"""Reading over framed TCP: the request is a few boxes, the answer is a stream of checked chunks.

The source gathers rows into a chunk that stays in its cache, sums it and sends it; the reader receives it into one that
stays in its own, piece by piece, and sums the rows while it places them past the cache. So heads that are split or
joined cost no extra pass over memory on either side, and only the wanted bytes travel. A side on which rows are long
needs no staging. Both sides cut alike (`split`), so a request names no chunks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, TypeVar

import msgspec

from native import _native
from transfer.errors import PeerViolation
from transfer.kv.boxes import Box, Dim
from transfer.kv.copies import Chunk, Copies
from transfer.kv.fabric import AskFabric, Reached
from transfer.kv.messages import Answer, Say, decode_answer, encode
from transfer.kv.near import Borrow, Near, Shown, lend
from transfer.kv.reader import CHUNK, ReadRefused, Span, Stopped, check_source, check_target
from transfer.netloader.guard import Guard, Switching
from transfer.transports import loss, staged
from transfer.transports.channel import MAX_MESSAGE, Channel
from transfer.transports.deadline import Deadline
from transfer.transports.frame import Kind

SERVICE = b"kv"
IDLE_S = 120.0
"""A reader that asks for nothing for so long is taken to be gone: with a pull it says something far more often."""
STALL_S = 10.0
"""A chunk that is not taken within this ends the connection."""
RECENT = 8
"""Sets of rows that either side of a connection remembers."""

_Answer = TypeVar("_Answer")
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
    """Send these rows (an array of 65,536 `Rows` at most) of region `handle`, as DATA frames of at most CHUNK bytes."""

    handle: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    rows: msgspec.Raw


class No(msgspec.Struct, frozen=True, tag=True):
    """Instead of the data."""

    reason: Annotated[str, msgspec.Meta(max_length=300)]


Request = Read | Borrow | AskFabric | Say
_request: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_rows: msgspec.msgpack.Decoder[tuple[Rows, ...]] = msgspec.msgpack.Decoder(
    Annotated[tuple[Rows, ...], msgspec.Meta(max_length=1 << 16)]
)
_no = msgspec.msgpack.Decoder(No)
_shown = msgspec.msgpack.Decoder(Shown)
_reached = msgspec.msgpack.Decoder(Reached)


class Stage:
    """CHUNK bytes that stay in the cache; there when they are first used."""

    @cached_property
    def _memory(self) -> ctypes.Array[ctypes.c_char]:
        return ctypes.create_string_buffer(CHUNK + 63)

    @cached_property
    def address(self) -> int:
        return -(-ctypes.addressof(self._memory) // 64) * 64

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
        self.near: Near | None = None
        """How the regions are lent to readers of the same machine; they are not, where there is none."""
        self.reached = Reached()
        """How they are read through a fabric."""

    def serve(self, channel: Channel) -> None:
        """Until the client goes. Raises TransferError, as the listener expects."""
        stage, rowsets = Stage(), Rowsets()
        while True:
            _, body = channel.receive(Deadline.after(IDLE_S))
            try:
                request = _request.decode(body)
                if isinstance(request, Read):
                    copies = rowsets.copies(request.rows)
            except ValueError as error:
                raise PeerViolation(f"a request that is none: {error}", remedy="run one vNPU on both sides") from error
            match request:
                case Read():
                    self._send_awake(channel, request.handle, copies, stage)
                case Borrow():
                    channel.send(encode(self._lend(request, channel)), Deadline.after(STALL_S))
                case AskFabric():
                    channel.send(encode(self.reached), Deadline.after(STALL_S))
                case _:
                    channel.send(encode(self._answer(request)), Deadline.after(STALL_S))

    def _send_awake(self, channel: Channel, handle: int, copies: Copies, stage: Stage) -> None:
        try:
            with self._guard.reading(channel.abort):
                self._send(channel, handle, copies, stage)
        except Switching as asleep:
            channel.send(encode(No(str(asleep)[:300])), Deadline.after(STALL_S))

    def _lend(self, request: Borrow, channel: Channel) -> Shown:
        try:
            with self._guard.reading(channel.abort):
                return lend(self.near, request, self._regions)
        except Switching:
            return Shown(0)

    def _send(self, channel: Channel, handle: int, copies: Copies, stage: Stage) -> None:
        region = self._regions.get(handle)
        try:
            if region is None:
                raise ReadRefused(f"there is no region {handle}")
            check_source(copies, region.size, handle)
        except ReadRefused as refused:
            channel.send(encode(No(str(refused)[:300])), Deadline.after(STALL_S))
            return
        position = 0
        for chunk in copies.chunks(CHUNK):
            channel.pace(chunk.bytes)
            rows = _at(region, chunk.src_rows)
            if rows is None:
                due = Deadline.after(STALL_S)
                staged.send(channel, chunk.whole, stage.span(chunk.bytes), region, due, position=position)
            else:
                total = _native.crc32c_rows(rows)
                channel.send_rows(rows, total, Deadline.after(STALL_S), position=position)
            position += chunk.bytes


class Rowsets:
    """What was asked for lately: the layers of a request are read by the same rows, and several requests, or KV groups
    of one, take turns. At most `RECENT`, and no more bytes of them than one message may hold."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Copies] = {}

    def copies(self, raw: msgspec.Raw) -> Copies:
        """Raises ValueError where these are no rows."""
        data = bytes(raw)
        copies = self._kept.pop(data, None)
        if copies is None:
            copies = Copies(_box(rows) for rows in _rows.decode(data))
        self._kept[data] = copies
        while len(self._kept) > RECENT or (len(self._kept) > 1 and sum(map(len, self._kept)) > MAX_MESSAGE):
            del self._kept[next(iter(self._kept))]
        return copies


class TcpReader:
    """Connects when it is first asked, and anew after an error, or where the source has hung up meanwhile."""

    def __init__(self, connect: Callable[[Deadline], Channel]) -> None:
        """`connect`: a channel to the source's `SERVICE` (`transfer.transports.dial`)."""
        self._connect = connect
        self._channel: Channel | None = None
        self._stage = Stage()
        self._encoded: dict[int, tuple[Copies, msgspec.Raw]] = {}

    def read(self, handle: int, boxes: Sequence[Box], into: Span, deadline: Deadline, stop: Callable[[], bool]) -> int:
        """As `Reader.read`."""
        copies = Copies.of(boxes)
        check_target(copies, into)
        if not copies:
            return 0
        try:
            channel = self._open(deadline)
            channel.send(encode(Read(handle, self._rows(copies))), deadline)
            moved = 0
            for chunk in copies.chunks(CHUNK):
                if stop():
                    raise Stopped("reading was stopped")
                moved += self._take(channel, chunk, into, moved, deadline)
        except ReadRefused:
            raise
        except BaseException:
            self.close()  # what else is on its way belongs to nobody
            raise
        return moved

    def _rows(self, copies: Copies) -> msgspec.Raw:
        """The source's half of them. Kept by what they are, not by what is in them: `Copies` are long."""
        _, raw = self._encoded.pop(id(copies), (copies, None))
        if raw is None:
            raw = msgspec.Raw(encode(tuple(_source(box) for box in copies)))
        self._encoded[id(copies)] = copies, raw
        if len(self._encoded) > RECENT:
            del self._encoded[next(iter(self._encoded))]
        return raw

    def ask(self, say: Say, deadline: Deadline) -> Answer:
        """One message of the session, and its answer. Raises PeerLost, PeerViolation."""
        return self._asked(say, deadline, decode_answer)

    def borrow(self, request: Borrow, deadline: Deadline) -> Shown:
        """Ask for memory of the source to map. Raises PeerLost, PeerViolation."""
        return self._asked(request, deadline, _shown.decode)

    def reached(self, request: AskFabric, deadline: Deadline) -> Reached:
        """How the source is read through a fabric. Raises PeerLost, PeerViolation."""
        return self._asked(request, deadline, _reached.decode)

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

    def _asked(self, request: Request, deadline: Deadline, decode: Callable[[bytes], _Answer]) -> _Answer:
        try:
            channel = self._open(deadline)
            channel.send(encode(request), deadline)
            return decode(channel.receive(deadline)[1])
        except ValueError as error:
            self.close()
            raise PeerViolation(f"an answer that is none: {error}") from error
        except BaseException:
            self.close()
            raise

    def _open(self, deadline: Deadline) -> Channel:
        if self._channel is not None and loss.hung_up(self._channel.socket):
            self.close()
        if self._channel is None:
            self._channel = self._connect(deadline)
        return self._channel

    def _take(self, channel: Channel, chunk: Chunk, into: Span, position: int, deadline: Deadline) -> int:
        size = chunk.bytes
        header = channel.head(deadline)
        if header.kind is Kind.MESSAGE:
            body = channel.body(header, deadline)
            try:
                raise ReadRefused(_no.decode(body).reason)
            except ValueError as error:
                raise PeerViolation("a message that is none where data was due") from error
        if (header.length, header.position) != (size, position):
            raise PeerViolation(f"{header.length} bytes at {header.position} came, {size} at {position} were due")
        rows = _at(into, chunk.dst_rows)
        if rows is None:
            staged.receive(channel, header, chunk.whole, into, self._stage.span(size), deadline)
        else:
            channel.into_rows(header, rows, deadline)
        return size


def _at(span: Span, rows: list[tuple[int, int]] | None) -> list[tuple[int, int]] | None:
    return None if rows is None else [(span.address + at, length) for at, length in rows]


def _source(box: Box) -> Rows:
    return Rows(box.src, box.length, tuple(Loop(dim.steps, dim.src_stride) for dim in box.dims))


def _box(rows: Rows) -> Box:
    return Box(0, rows.at, rows.length, tuple(Dim(loop.steps, 0, loop.stride) for loop in rows.loops))
