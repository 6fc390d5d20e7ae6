"""The daemon's Unix socket: frames in, frames and descriptors out, on asyncio or uvloop.

One task a connection, one request at a time. The kernel says who the peer is; the uid must be the daemon's own. A frame
that has begun must end within `FRAME_TIMEOUT`, a reply must be taken within it, and the first frame must come within
it; between requests a peer may be silent for as long as it likes. What is not a frame of ours is answered with
`Refused` and the connection is closed. A peer that hangs up cancels its request.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from native import protocol
from native.frames import close_all, passed
from native.processes import Gone, Process, credentials, peer_process
from native.protocol import MAX_FDS, MAX_FRAME, Code, Refused

log = logging.getLogger(__name__)

FRAME_TIMEOUT = 10.0
MAX_CONNECTIONS = 4096
_BACKLOG = 512
_PAUSE_WITHOUT_DESCRIPTORS = 0.2
_LENGTH = struct.Struct(">I")
_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class SocketError(Exception):
    """The socket cannot be listened on; the message says what to do."""


class Malformed(Exception):
    """What came is no frame of this protocol."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply and the descriptors beside it. `done` is called once it is sent or could not be, `unsent` where the peer
    certainly has nothing of it; `last`: hang up then."""

    reply: protocol.Reply
    descriptors: tuple[int, ...] = ()
    unsent: Callable[[], None] = _nothing
    done: Callable[[], None] = _nothing
    last: bool = False


class Session(Protocol):
    """What the daemon does for one connection."""

    async def handle(self, request: protocol.Request, beside: Sequence[int] = ()) -> Answer:
        """Answer one request; cancelled when the peer hangs up. The descriptors beside it are closed afterwards."""
        ...

    def closed(self) -> None:
        """The connection is over, the process may live on."""
        ...


class Server:
    """Accepts connections on `path` and gives each a session. The file is 0600 and goes when the server ends."""

    def __init__(
        self,
        path: Path,
        open_session: Callable[[Process], Session],
        *,
        uid: int | None = None,
        peerpidfd: bool = True,
    ) -> None:
        """Listen at once. Peers must run as `uid` (None: as this process). `peerpidfd` as for `peer_process`.

        Raises:
            SocketError: another daemon listens there, something else lies there, or the path is too long.
        """
        self.path = path
        self._open_session = open_session
        self._uid = os.getuid() if uid is None else uid
        self._peerpidfd = peerpidfd
        self._listener = _listen(path)
        self._inode = path.stat().st_ino
        self._open = 0
        self._accepted: set[socket.socket] = set()

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    try:
                        sock = await self._accept()
                    except OSError as error:
                        if error.errno not in _OUT_OF_RESOURCES:
                            raise
                        log.warning("accept: %s; trying again", error.strerror)
                        await asyncio.sleep(_PAUSE_WITHOUT_DESCRIPTORS)
                        continue
                    self._accepted.add(sock)
                    group.create_task(self._serve(sock))
        finally:
            self.close()
            for sock in self._accepted:  # whose task was cancelled before it began
                sock.close()

    async def _accept(self) -> socket.socket:
        """Not `loop.sock_accept`: cancelled after it has accepted and before it is awaited, it loses the socket."""
        while True:
            await _readable(self._listener)
            try:
                return self._listener.accept()[0]
            except BlockingIOError:  # the peer was gone again
                continue

    def close(self) -> None:
        """Stop listening and remove the file, where it is still ours; idempotent."""
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()

    async def _serve(self, sock: socket.socket) -> None:
        self._open += 1
        connection = Connection(sock)
        try:
            sock.setblocking(False)
            await self._greet(connection)
        except (OSError, TimeoutError, Gone) as error:
            log.info("connection ended: %s", str(error) or type(error).__name__)
        finally:
            self._open -= 1
            self._accepted.discard(sock)
            connection.close()

    async def _greet(self, connection: Connection) -> None:
        peer = credentials(connection.sock)
        if peer.uid != self._uid:
            log.warning("refused a connection of uid %d, pid %d", peer.uid, peer.pid)
            await connection.refuse(Code.FORBIDDEN, f"uid {peer.uid} may not use this daemon")
        elif self._open > MAX_CONNECTIONS:
            log.warning("refused a connection: %d are open", MAX_CONNECTIONS)
            await connection.refuse(Code.FAILED, f"{MAX_CONNECTIONS} connections are open")
        else:
            session = self._open_session(peer_process(connection.sock, peerpidfd=self._peerpidfd))
            try:
                await self._converse(connection, session)
            finally:
                session.closed()

    async def _converse(self, connection: Connection, session: Session) -> None:
        answer: Answer | None = None
        while answer is None or not answer.last:
            try:
                request = await connection.receive(FRAME_TIMEOUT if answer is None else None)
            except Malformed as error:
                log.warning("malformed request: %s", error)
                await connection.refuse(Code.BAD_REQUEST, str(error))
                return
            except ConnectionResetError:
                # The kernel says so where the peer closed with our last answer unread (and not where it read it).
                if answer is not None:
                    answer.unsent()
                return
            if request is None:
                return
            beside = connection.beside()
            try:
                answer = await connection.unless_hung_up(_handled(session, request, beside))
            finally:
                close_all(beside)
            await connection.send(answer)


async def _handled(session: Session, request: protocol.Request, beside: Sequence[int]) -> Answer:
    try:
        return await session.handle(request, beside)
    except Exception:
        # One request's failure is not the node's: what was not persisted does not count, and the peer may ask again.
        log.exception("request %s failed", type(request).__name__)
        return Answer(Refused(Code.FAILED, "the daemon failed; its log says how"), last=True)


class Connection:
    """Frames on one connected, non-blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._beside: list[int] = []

    def beside(self) -> list[int]:
        """Descriptors that came with the last request, once: the caller's to close."""
        taken, self._beside = self._beside, []
        return taken

    def close(self) -> None:
        close_all(self.beside())
        self.sock.close()

    async def receive(self, first_byte_within: float | None) -> protocol.Request | None:
        """The next request; None where the peer hung up between frames.

        Raises:
            Malformed: oversize, undecodable or cut off.
            TimeoutError: the peer was too slow.
        """
        async with asyncio.timeout(first_byte_within):
            head = await self._begin()
        if not head:
            return None
        async with asyncio.timeout(FRAME_TIMEOUT):
            head += await self._exactly(_LENGTH.size - len(head))
            (length,) = _LENGTH.unpack(head)
            if length > MAX_FRAME:
                raise Malformed(f"a frame of {length} B, at most {MAX_FRAME} B are allowed")
            body = await self._exactly(length)
        try:
            request: protocol.Request = protocol.decode_request(body)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Malformed(str(error)) from error
        return request

    async def _begin(self) -> bytes:
        """The first bytes of a frame, and the descriptors that travel with them. Those that come later, or are more
        than MAX_FDS, the kernel closes.

        Raises:
            Malformed: descriptors were cut off.
        """
        room = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
        while True:
            try:
                head, ancillary, flags, _ = self.sock.recvmsg(_LENGTH.size, room, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                await _readable(self.sock)
                continue
            close_all(self.beside())
            self._beside = passed(ancillary)
            if flags & socket.MSG_CTRUNC:
                raise Malformed(f"descriptors were cut off: over {MAX_FDS} of them, or the daemon has none left")
            return head

    async def send(self, answer: Answer) -> None:
        """Send a reply with its descriptors.

        Raises:
            OSError: the peer is gone. TimeoutError: it does not read.
        """
        body = protocol.encode(answer.reply)
        frame = _LENGTH.pack(len(body)) + body
        begun = False
        try:
            async with asyncio.timeout(FRAME_TIMEOUT):
                sent = await self._send_some(frame, answer.descriptors)
                begun = True
                await asyncio.get_running_loop().sock_sendall(self.sock, memoryview(frame)[sent:])
        finally:
            # Descriptors travel with the first byte: where none was taken, the peer has nothing of this answer.
            if not begun:
                answer.unsent()
            answer.done()

    async def refuse(self, code: Code, message: str) -> None:
        await self.send(Answer(Refused(code, message)))

    async def unless_hung_up(self, work: Coroutine[object, None, Answer]) -> Answer:
        """Run `work`; where the peer hangs up meanwhile, cancel it.

        Raises:
            ConnectionResetError: the peer hung up.
        """
        loop = asyncio.get_running_loop()
        task = loop.create_task(work)
        hung_up = loop.create_future()
        loop.add_reader(self.sock, self._peek, hung_up)
        try:
            await asyncio.wait((task, hung_up), return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(self.sock)
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
            hung_up.cancel()
        if task.cancelled():
            raise ConnectionResetError("the peer hung up")
        return task.result()

    def _peek(self, hung_up: asyncio.Future[None]) -> None:
        try:
            data = self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        # A byte of the next request would wake the loop for ever: from now on only the end of this one is waited for.
        asyncio.get_running_loop().remove_reader(self.sock)
        if not data and not hung_up.done():
            hung_up.set_result(None)

    async def _send_some(self, frame: bytes, descriptors: tuple[int, ...]) -> int:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        while True:
            try:
                return self.sock.sendmsg([frame], ancillary)
            except BlockingIOError:
                await self._writable()

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        writable = loop.create_future()
        loop.add_writer(self.sock, _resolve, writable)
        try:
            await writable
        finally:
            loop.remove_writer(self.sock)

    async def _exactly(self, size: int) -> bytes:
        loop = asyncio.get_running_loop()
        parts = bytearray()
        while len(parts) < size:
            part = await loop.sock_recv(self.sock, size - len(parts))
            if not part:
                raise Malformed(f"the peer hung up {size - len(parts)} B before the end of a frame")
            parts += part
        return bytes(parts)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(sock, _resolve, readable)
    try:
        await readable
    finally:
        loop.remove_reader(sock)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _listen(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise SocketError(f"{path} cannot be listened on: {error}; give another --socket") from error
    finally:
        os.umask(mask)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def _clear(path: Path) -> None:
    """Remove a socket that a killed daemon left behind."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise SocketError(f"{path} exists and is no socket; give another --socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise SocketError(f"another daemon listens on {path}; stop it or give another --socket")
