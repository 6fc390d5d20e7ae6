"""One connection, blocking, in frames. Every call has a deadline; every body is checked.

Data is received straight into its place: `recv_into` the caller's address in pieces that stay in the processor's cache
until they are summed. The sender's sums are the caller's, who computes them once and not for each client.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import socket
import ssl
import time
from collections.abc import Sequence
from types import TracebackType

from native import _native
from transfer.errors import Corrupt, PeerLost, PeerViolation
from transfer.transports import frame, loss, outgoing
from transfer.transports.carrier import Giver, Piece, Taker
from transfer.transports.deadline import Deadline
from transfer.transports.frame import Header, Kind
from transfer.transports.outgoing import Block
from transfer.transports.pace import Pace, Slot

PIECE = 256 << 10
"""Bytes received at once and summed while they are in the cache (the second-level one has 512 KiB and more)."""
MAX_MESSAGE = 1 << 20
AHEAD = 4096
"""Bytes read at once where many small frames come: of what is mapped only the places are told."""
HOLD_S = 0.01
"""What is told with others waits for them so long at most."""


class Channel:
    """Used by one thread at a time; `abort` by any. A context manager that closes. After an error it is of no use."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes the socket over."""
        self._sock = sock
        self._max_message = MAX_MESSAGE
        self._pace: Pace | None = None
        self._giver: Giver | None = None
        self._taker: Taker | None = None
        self._held = bytearray()
        self._held_since = 0.0
        self._ahead = memoryview(b"")
        self.sent = 0
        self.received = 0
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def peer(self) -> str:
        """For messages and logs: `host:port`, or what there is."""
        with contextlib.suppress(OSError):
            name = self._sock.getpeername()
            return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name) or "local"
        return "gone"

    @property
    def local(self) -> str:
        """The address that the peer reaches this end at."""
        name = self._sock.getsockname()
        return str(name[0]) if isinstance(name, tuple) else "127.0.0.1"

    @property
    def socket(self) -> socket.socket:
        """For who must break it from elsewhere."""
        return self._sock

    def configure(self, *, max_message: int = MAX_MESSAGE, pace: Pace | None = None) -> None:
        """`max_message`: bytes of a MESSAGE that are accepted; `pace`: the limit that `pace` waits for."""
        self._max_message = max_message
        self._pace = pace

    def carry(self, *, giver: Giver | None = None, taker: Taker | None = None) -> None:
        """From now on bytes may go aside, as both ends have agreed. What is handed over is closed with the channel."""
        self._giver, self._taker = giver, taker

    # ---- frames

    def send(self, body: bytes, deadline: Deadline, *, tag: int = 0, position: int = 0) -> None:
        """A MESSAGE.

        Raises:
            PeerLost: not before the deadline, or the connection broke.
        """
        header = frame.encode(Header(Kind.MESSAGE, tag, len(body), position, frame.checksum(body)))
        self.send_raw(self._unheld(header + body), deadline)

    def pace(self, size: int) -> None:
        """Wait until the rate limit lets `size` bytes of DATA through. Apart from `send_data`, so that nobody waits
        here while holding what others need."""
        if self._pace is not None:
            self._pace.wait(size)

    @property
    def unlimited(self) -> bool:
        """There is no rate limit just now."""
        return self._pace is None or self._pace.free

    @property
    def parallel(self) -> bool:
        """What comes aside may be taken by several threads at once: `place`, then `take_all`."""
        return self._taker is not None and self._taker.parallel

    def send_data(
        self,
        address: int,
        length: int,
        sum: int,
        deadline: Deadline,
        *,
        tag: int = 0,
        position: int = 0,
        more: bool = False,
    ) -> None:
        """DATA from memory at `address`, which must stay readable until the call returns; `sum` is its CRC-32C.
        `more`: others follow at once, and it may leave with them, or with `flush`.

        Raises:
            PeerLost: not before the deadline, or the connection broke.
        """
        place = self._giver.place(address, length) if self._giver else None
        if self._giver is None or place is None:
            self.send_rows([(address, length)], sum, deadline, tag=tag, position=position)
            return
        header = frame.encode(Header(Kind.ASIDE, tag, length, position, sum))
        self._hold(header + frame.PLACE.pack(place))
        now = time.monotonic()
        if not (more and self._giver.quiet and now - self._held_since < HOLD_S):
            self.flush(deadline)
        self._giver.push(address, length, deadline)
        self.sent += length

    @property
    def plain(self) -> bool:
        """DATA goes through the connection as it is, both ways."""
        return self._giver is None and self._taker is None and not isinstance(self._sock, ssl.SSLSocket)

    def book(self, sizes: Sequence[int]) -> Slot:
        """When the first of DATA of these sizes may go, as many as the rate limit lets; waits as `pace` does."""
        return self._pace.book(sizes) if self._pace else Slot(len(sizes))

    def send_run(
        self, blocks: Sequence[Block], slot: Slot, timeout_s: float, halt: _native.Halt, *, tag: int = 0
    ) -> int:
        """DATA of the blocks that `slot` was booked for; else as `outgoing.send`. Where the channel is `plain`."""
        gone = outgoing.send(self._sock, blocks, slot, timeout_s, halt, tag)
        self.sent += sum(block.length for block in blocks[:gone])
        return gone

    def flush(self, deadline: Deadline) -> None:
        """What waits for more leaves. Raises PeerLost."""
        if self._held:
            self._sendall(self._unheld(b""), deadline)

    def _hold(self, data: bytes) -> None:
        if not self._held:
            self._held_since = time.monotonic()
        self._held += data

    def _unheld(self, data: bytes) -> bytes:
        """What waits, and then `data`."""
        held, self._held = bytes(self._held), bytearray()
        return held + data

    def send_rows(
        self, rows: Sequence[tuple[int, int]], sum: int, deadline: Deadline, *, tag: int = 0, position: int = 0
    ) -> None:
        """DATA gathered from several places, `(address, bytes)` each; else as `send_data`."""
        length = builtins.sum(size for _, size in rows)
        header = self._unheld(frame.encode(Header(Kind.DATA, tag, length, position, sum)))
        if isinstance(self._sock, ssl.SSLSocket):
            self._sendall(header, deadline)
            for address, size in rows:
                self._sendall(view(address, size), deadline)
        else:
            held = ctypes.c_char_p(header)
            start = ctypes.cast(held, ctypes.c_void_p).value or 0
            self._send_rows([(start, len(header)), *rows], deadline)
        self.sent += length

    def receive(self, deadline: Deadline) -> tuple[Header, bytes]:
        """The next frame, which must be a MESSAGE.

        Raises:
            PeerLost: not before the deadline, or the connection broke.
            PeerViolation: it is DATA, or too long; `Corrupt`: damaged.
        """
        header = self.head(deadline)
        return header, self.body(header, deadline)

    @property
    def more(self) -> bool:
        """Another header is here already: `head` will not wait."""
        return len(self._ahead) >= frame.HEADER

    def head(self, deadline: Deadline) -> Header:
        """The next frame's header; then `body`, `into` or `skip` must take the rest. Raises as `receive`."""
        return frame.decode(self.receive_raw(frame.HEADER, deadline))

    def expect(self, due: Header, address: int, deadline: Deadline) -> Header:
        """`head`, and where it is `due`, which is DATA, at once `into`: in one step, for whoever knows what comes next.
        `due` itself is returned then; another header, where the rest of the frame is still to be taken. Raises as
        `head` and `into`."""
        if self._ahead or isinstance(self._sock, ssl.SSLSocket):
            header = self.head(deadline)
            if header != due:
                return header
            self.into(header, address, deadline)
            return due
        wanted = frame.encode(due)
        error, came, total = _native.receive_frame(
            self._sock.fileno(), wanted, address, due.length, deadline.left()
        )  # fmt: skip
        if error:
            raise loss.lost(self.peer, error)
        if came != wanted:
            return frame.decode(came)
        self.came(due, total)
        return due

    def body(self, header: Header, deadline: Deadline) -> bytes:
        """The body of a MESSAGE. Raises as `receive`."""
        if header.kind is not Kind.MESSAGE or header.length > self._max_message:
            raise PeerViolation(
                f"{header.kind.name} of {header.length} bytes where a message of at most {self._max_message} was due"
            )
        body = self.receive_raw(header.length, deadline)
        if frame.checksum(body) != header.sum:
            raise Corrupt("a message is damaged", remedy="connect anew")
        return body

    def into(self, header: Header, address: int, deadline: Deadline) -> None:
        """The body of a DATA frame, or what an ASIDE frame announces, written to `address`, where `header.length` bytes
        must be writable.

        Raises:
            Corrupt: what was written is not what was sent.
            PeerLost: not before the deadline, or the connection broke; part of it may have been written.
        """
        if header.kind is Kind.ASIDE:
            place = self.place(header, deadline)
            self._check(header, self._agreed().take(place, address, header.length, deadline))
            return
        self.into_rows(header, [(address, header.length)], deadline)

    def into_rows(self, header: Header, rows: Sequence[tuple[int, int]], deadline: Deadline) -> None:
        """The body of a DATA frame, scattered to several places, `(address, bytes)` each, which make up its length;
        else as `into`."""
        self.must_be_data(header)
        self.came(header, self.receive_rows(rows, deadline))

    def must_be_data(self, header: Header) -> None:
        """Raises PeerViolation."""
        if header.kind is not Kind.DATA:
            raise PeerViolation(f"{header.kind.name} where data was due")

    def came(self, header: Header, total: int) -> None:
        """The body was received, and this is its sum. Raises Corrupt."""
        self.received += header.length
        self._check(header, total)

    def place(self, header: Header, deadline: Deadline) -> int:
        """Where the bytes lie that an ASIDE frame announces, for `take_all`. Raises as `into`."""
        (place,) = frame.PLACE.unpack(self.receive_raw(frame.PLACE.size, deadline))
        self.received += header.length
        return int(place)

    def take_all(self, pieces: Sequence[Piece], deadline: Deadline) -> int:
        """What ASIDE frames announced, each written to its address; how many were right before the first that was
        not. By any thread where the channel is `parallel`. Raises as `into`, but for that one."""
        return self._agreed().take_all(pieces, deadline)

    def _agreed(self) -> Taker:
        if self._taker is None:
            raise PeerViolation("bytes went aside, and no way was agreed on")
        return self._taker

    def _check(self, header: Header, total: int) -> None:
        if total != header.sum:
            raise Corrupt(f"{header.length} bytes at position {header.position} are damaged", remedy="fetch them again")

    def skip(self, header: Header, deadline: Deadline) -> None:
        """Read a body that nobody wants. Raises PeerLost."""
        scrap, left = memoryview(bytearray(min(header.length, PIECE))), header.length
        while left:
            left -= self._receive_into(scrap[:left], deadline)

    # ---- bytes

    def send_raw(self, data: bytes, deadline: Deadline) -> None:
        self._sendall(data, deadline)

    def receive_raw(self, size: int, deadline: Deadline) -> bytes:
        """Exactly `size` bytes. Raises PeerLost."""
        if self.parallel and len(self._ahead) < size:
            self._read_ahead(size, deadline)
        if len(self._ahead) >= size:
            found, self._ahead = bytes(self._ahead[:size]), self._ahead[size:]
            return found
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            rest = rest[self._receive_into(rest, deadline) :]
        return bytes(data)

    def _sendall(self, data: bytes | memoryview, deadline: Deadline) -> None:
        try:
            self._sock.settimeout(deadline.left())
            self._sock.sendall(data)
        except OSError as error:  # TimeoutError is one
            raise PeerLost(f"{self.peer} took no more bytes: {_why(error)}") from error

    def _send_rows(self, rows: Sequence[tuple[int, int]], deadline: Deadline) -> None:
        """All of them in as few packets as there can be: header and body leave together."""
        if error := _native.send_rows(self._sock.fileno(), rows, deadline.left()):
            raise loss.untaken(self.peer, error)

    def receive_rows(self, rows: Sequence[tuple[int, int]], deadline: Deadline) -> int:
        """Bytes of a body; their sum. Raises PeerLost."""
        if not self._ahead and not isinstance(self._sock, ssl.SSLSocket):
            error, total = _native.receive_rows(self._sock.fileno(), rows, deadline.left())
            if error:
                raise loss.lost(self.peer, error)
            return total
        total = 0
        for address, size in rows:
            done = 0
            while done < size:
                got = self._receive_into(view(address + done, min(size - done, PIECE)), deadline)
                total = _native.crc32c(address + done, got, total)
                done += got
        return total

    def _read_ahead(self, least: int, deadline: Deadline) -> None:
        buffer = memoryview(bytearray(max(AHEAD, least)))
        got = len(self._ahead)
        buffer[:got], self._ahead = self._ahead, memoryview(b"")
        while got < least:
            got += self._receive_into(buffer[got:], deadline)
        self._ahead = buffer[:got]

    def _receive_into(self, target: memoryview, deadline: Deadline) -> int:
        if self._ahead:
            got = min(len(target), len(self._ahead))
            target[:got], self._ahead = self._ahead[:got], self._ahead[got:]
            return got
        try:
            self._sock.settimeout(deadline.left())
            got = self._sock.recv_into(target)
        except OSError as error:
            raise PeerLost(f"no more bytes from {self.peer}: {_why(error)}") from error
        if not got:
            raise PeerLost(f"{self.peer} closed the connection")
        return got

    # ---- the end

    def abort(self) -> None:
        """Break the connection, from any thread: a call that is blocked raises PeerLost. Idempotent."""
        for way in (self._giver, self._taker):
            if way is not None:
                way.abort()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Idempotent; nobody may be using it."""
        for way in (self._giver, self._taker):
            if way is not None:
                way.close()
        with contextlib.suppress(OSError):
            self._sock.close()


def view(address: int, length: int) -> memoryview:
    """Memory of this process as bytes. Nothing keeps it alive: the caller does."""
    return memoryview((ctypes.c_char * length).from_address(address)).cast("B")


def _why(error: OSError) -> str:
    return "the deadline passed" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
