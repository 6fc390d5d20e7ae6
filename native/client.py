"""The daemon's client: synchronous, every call with a deadline, reconnects and says hello again by itself.

Worker processes call it directly, the agent through `asyncio.to_thread`. A connection that breaks mid-call (the daemon
was restarted) is made anew within the call's deadline and the request is sent again: every request is idempotent.
Where only the deadline passed, nothing is sent again: the caller decides. To a daemon that was restarted it first hands
back what its process keeps (`native.kept`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

import msgspec

from native import protocol
from native.frames import FrameError, close_all, exchange, left
from native.kept import Kept
from native.protocol import MAX_FDS, Code, Kind

ANSWER_MARGIN = 5.0
"""Seconds a client waits longer than it asked the daemon to wait, so that the daemon's own answer arrives first."""

KILL_S = 10.0
"""Seconds the daemon gives a killed process to end, before it answers that it has not."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.25

R = TypeVar("R", bound=protocol.Reply)
T = TypeVar("T")


class DaemonError(Exception):
    """The node daemon did not do what was asked."""


class DaemonRefused(DaemonError):
    """It answered no, for the reason `code`."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(f"{code.value}: {message}")
        self.code = code


class DaemonUnavailable(DaemonError):
    """No answer within the deadline: it may or may not have been done. Asking again is safe."""


class Chunk(msgspec.Struct, frozen=True):
    """A chunk of device memory that was mapped to this process: `fd` (the caller's to close) and `size` in bytes.

    Where the driver shares by handle, `fd` is -1 and `handle` the 64-bit number."""

    id: int
    fd: int
    size: int
    handle: int = 0

    @property
    def shareable(self) -> int:
        """What `Driver.import_handle` takes."""
        return self.handle if self.fd < 0 else self.fd

    def close(self) -> None:
        """Close the descriptor, where there is one."""
        if self.fd >= 0:
            os.close(self.fd)


class View(msgspec.Struct, frozen=True):
    """Chunks of another process that this one may map read-only, until it is asked to let go. Descriptors are the
    caller's to close."""

    id: int
    chunks: tuple[Chunk, ...]


class Client:
    """One connection to the daemon of this node, for one process of one engine. Thread-safe: calls take turns."""

    def __init__(
        self,
        path: str,
        engine: str,
        nonce: str,
        role: str,
        rank: int = 0,
        *,
        call_timeout: float = 30.0,
        kept: Kept | None = None,
    ) -> None:
        """Args:
        path: the daemon's socket.
        engine, nonce: as in the engine's spec key, which the daemon compares.
        role: `agent` (enters and leaves) or `worker` (maps).
        call_timeout: seconds for calls that do not say otherwise.
        kept: of this process, where it has several clients.
        """
        self._path = path
        self._hello = protocol.Hello(engine=engine, nonce=nonce, role=role, rank=rank)
        self._call_timeout = call_timeout
        self._turn = threading.Lock()
        self._sock: socket.socket | None = None
        self._closed = False
        self.kept = Kept() if kept is None else kept
        """What is handed back to a restarted daemon; close it when the process has let go of its memory."""
        self.welcome: protocol.Welcome | None = None

    def sibling(self) -> Client:
        """Another connection of the same process, for what would block this one (`listen`)."""
        hello = self._hello
        return Client(
            self._path,
            hello.engine,
            hello.nonce,
            hello.role,
            hello.rank,
            call_timeout=self._call_timeout,
            kept=self.kept,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a call under way in another thread ends with `DaemonUnavailable`. Idempotent."""
        self._closed = True
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if self._turn.acquire(timeout=ANSWER_MARGIN):
            try:
                self._drop()
            finally:
                self._turn.release()

    def connect(self, timeout_s: float | None = None) -> protocol.Welcome:
        """Connect and say hello, where that is not done yet; what every other call does by itself.

        Raises:
            DaemonRefused: FORBIDDEN: the nonce is not that of the engine's spec key, or its processes are dying.
            DaemonUnavailable: no daemon within the time.
        """
        deadline = self._deadline(timeout_s)
        with self._turn_before(deadline):
            self._retrying(deadline, lambda sock: None)
        if self.welcome is None:
            raise DaemonUnavailable(f"{self._path}: no welcome")
        return self.welcome

    def enter(self, device: str, epoch: str, revision: int, timeout_s: float) -> protocol.Opened:
        """PROTOCOL rule 6: open the operation of fence (`epoch`, `revision`); waits at most `timeout_s`.

        Raises:
            DaemonRefused: STALE: touch nothing. TIMEOUT: waited; may be asked again under the same fence.
            DaemonUnavailable: the daemon is away or silent.
        """

        def ask(left: float) -> protocol.Request:
            return protocol.Enter(device=device, epoch=epoch, revision=revision, timeout_s=left)

        return self._wait_for(ask, protocol.Opened, timeout_s)

    def leave(self, device: str, epoch: str, revision: int, timeout_s: float | None = None) -> None:
        """PROTOCOL rule 8: the operation is over, durably. Idempotent.

        Raises:
            DaemonRefused: NOT_OPEN: this fence was never entered, or by another.
            DaemonUnavailable: the daemon is away or silent: leave again.
        """
        self._ask(protocol.Leave(device=device, epoch=epoch, revision=revision), protocol.Done, timeout_s)

    def await_open(self, device: str, timeout_s: float) -> protocol.Opened:
        """Wait until an operation of this engine is open on `device` (start-up admission).

        Raises:
            DaemonRefused: TIMEOUT.
            DaemonUnavailable: the daemon is away or silent.
        """
        return self._wait_for(
            lambda left: protocol.AwaitOpen(device=device, timeout_s=left), protocol.Opened, timeout_s
        )

    def map(
        self, device: str, kind: Kind, count: int, timeout_s: float | None = None, *, share_id: int = 0
    ) -> tuple[Chunk, ...]:
        """PROTOCOL rule 7: `count` chunks with a descriptor each, all or none. Import and close each. `share_id` is the
        driver's, where it shares by handle.

        Raises:
            DaemonRefused: NOT_OPEN, NO_SPACE (grant or capacity), TIMEOUT (still being populated).
            DaemonUnavailable: the daemon is away or silent.
        """
        deadline = self._deadline(timeout_s) + ANSWER_MARGIN
        chunks: list[Chunk] = []
        try:
            while len(chunks) < count:
                chunks += self._map_some(device, kind, min(MAX_FDS, count - len(chunks)), share_id, deadline)
        except DaemonError:
            for chunk in chunks:
                chunk.close()
            if chunks:
                self.unmap(device, [chunk.id for chunk in chunks])
            raise
        return tuple(chunks)

    def unmap(self, device: str, chunks: Iterable[int], timeout_s: float | None = None) -> None:
        """These chunks are unmapped here and their descriptors closed; the daemon may give them to others. Idempotent.

        Raises:
            DaemonRefused: NOT_OPEN, or BAD_REQUEST: one belongs to another process.
            DaemonUnavailable: the daemon is away or silent: unmap again.
        """
        ids = tuple(chunks)
        if ids:
            self._ask(protocol.Unmap(device=device, chunks=ids), protocol.Done, timeout_s)

    def create_master(self, size: int, timeout_s: float = 120.0) -> tuple[int, int]:
        """A new host master: writable descriptor (the caller's to close) and its size in bytes, `size` rounded up.

        Raises:
            DaemonRefused: NO_SPACE: the node's budget for host memory is spent.
            DaemonUnavailable: the daemon is away or silent.
        """
        return self._descriptor(protocol.CreateMaster(size=size), timeout_s)

    def seal_master(self, digest: str, timeout_s: float | None = None) -> None:
        """Name what the last `create_master` of this client now holds; close the writable descriptor.

        Raises:
            DaemonRefused: NOT_FOUND: there is none (the daemon was restarted meanwhile: create it again).
            DaemonUnavailable: the daemon is away or silent.
        """
        self._ask(protocol.SealMaster(digest=digest), protocol.Done, timeout_s)

    def open_master(self, digest: str, timeout_s: float | None = None) -> tuple[int, int] | None:
        """Read-only descriptor (the caller's to close) and size of the sealed master of `digest`; None: there is none.

        Raises:
            DaemonUnavailable: the daemon is away or silent.
        """
        try:
            return self._descriptor(protocol.OpenMaster(digest=digest), timeout_s)
        except DaemonRefused as refused:
            if refused.code is Code.NOT_FOUND:
                return None
            raise

    def release_master(self, digest: str, timeout_s: float | None = None) -> None:
        """This process has the master of `digest` mapped no more: it may be evicted. Idempotent.

        Raises:
            DaemonUnavailable: the daemon is away or silent.
        """
        self._ask(protocol.ReleaseMaster(digest=digest), protocol.Done, timeout_s)

    def listen(self, after: int, timeout_s: float) -> protocol.News:
        """What the daemon asks of this process beyond `after` (the last answer's `last`); waits at most `timeout_s`.

        Raises:
            DaemonUnavailable: the daemon is away or silent.
        """
        return self._wait_for(
            lambda left: protocol.Listen(after=after, timeout_s=min(left, timeout_s)), protocol.News, timeout_s
        )

    def offer_view(self, device: str, chunks: Iterable[int], to: str = "", timeout_s: float | None = None) -> int:
        """Let processes of the engine `to` (empty: of any engine of this node) map these chunks of this process
        read-only. Returns the id that they open it by.

        Raises:
            DaemonRefused: BAD_REQUEST: a chunk is not this process's.
            DaemonUnavailable: the daemon is away or silent.
        """
        return self._ask(protocol.OfferView(device, tuple(chunks), to), protocol.Offered, timeout_s).view

    def open_view(self, view: int, timeout_s: float | None = None) -> View:
        """Map what comes read-only, close the descriptors; when the `Listener` says so, unmap and `close_view`.

        Raises:
            DaemonRefused: NOT_FOUND: there is no such view for this process (any more).
            DaemonUnavailable: the daemon is away or silent.
        """
        deadline = self._deadline(timeout_s)
        chunks: list[Chunk] = []
        total = 1
        try:
            while len(chunks) < total:
                request = protocol.OpenView(view, len(chunks))
                reply, descriptors = self._call(lambda left, request=request: request, protocol.Viewed, deadline)  # type: ignore[misc]
                if len(descriptors) != len(reply.chunks) or not descriptors:
                    close_all(descriptors)
                    raise DaemonError(f"{len(reply.chunks)} chunks came with {len(descriptors)} descriptors")
                chunks += [Chunk(*pair, reply.chunk) for pair in zip(reply.chunks, descriptors, strict=True)]
                total = reply.total
        except DaemonError:
            close_all(chunk.fd for chunk in chunks)
            if chunks:
                self.close_view(view)
            raise
        return View(view, tuple(chunks))

    def close_view(self, view: int, timeout_s: float | None = None) -> None:
        """The view is unmapped here and its descriptors closed. Always allowed, idempotent.

        Raises:
            DaemonUnavailable: the daemon is away or silent: close it again.
        """
        self._ask(protocol.CloseView(view=view), protocol.Done, timeout_s)

    def revoke_view(self, view: int, timeout_s: float) -> None:
        """By the owner: returns when nobody has the view mapped. Who has not let go after `timeout_s` is killed.

        Raises:
            DaemonRefused: TIMEOUT: a killed process has not ended yet; BAD_REQUEST: the view is another's.
            DaemonUnavailable: the daemon is away or silent: revoke it again.
        """
        self._ask(protocol.RevokeView(view, timeout_s), protocol.Done, timeout_s + KILL_S + ANSWER_MARGIN)

    def report_host(self, saved_kv: int, timeout_s: float | None = None) -> None:
        """This process holds `saved_kv` bytes of host memory for saved KV from now on.

        Raises:
            DaemonRefused: NO_SPACE: they do not fit into the node's budget.
            DaemonUnavailable: the daemon is away or silent.
        """
        self._ask(protocol.ReportHost(saved_kv=saved_kv), protocol.Done, timeout_s)

    def stats(self, timeout_s: float | None = None) -> str:
        """What the daemon knows, as JSON text, for people and tests."""
        return self._ask(protocol.Stats(), protocol.Facts, timeout_s).json

    def _map_some(self, device: str, kind: Kind, count: int, share_id: int, deadline: float) -> list[Chunk]:
        ticket = secrets.randbits(62) + 1

        def ask(left: float) -> protocol.Request:
            return protocol.Map(device, kind, count, ticket, left, share_id)

        reply, descriptors = self._call(ask, protocol.Mapped, deadline)
        if sorted((len(descriptors), len(reply.handles))) != [0, len(reply.chunks)]:
            close_all(descriptors)
            came = f"{len(descriptors)} descriptors and {len(reply.handles)} handles"
            raise DaemonError(f"{len(reply.chunks)} chunks came with {came}")
        if reply.handles:
            return [Chunk(id, -1, reply.chunk, handle) for id, handle in zip(reply.chunks, reply.handles, strict=True)]
        return [Chunk(*pair, reply.chunk) for pair in zip(reply.chunks, descriptors, strict=True)]

    def _descriptor(self, request: protocol.Request, timeout_s: float | None) -> tuple[int, int]:
        reply, descriptors = self._call(lambda left: request, protocol.Master, self._deadline(timeout_s))
        if len(descriptors) != 1:
            close_all(descriptors)
            raise DaemonError(f"a master came with {len(descriptors)} descriptors")
        return descriptors[0], reply.size

    def _ask(self, request: protocol.Request, answer: type[R], timeout_s: float | None) -> R:
        reply, descriptors = self._call(lambda left: request, answer, self._deadline(timeout_s))
        close_all(descriptors)
        return reply

    def _wait_for(self, ask: Callable[[float], protocol.Request], answer: type[R], timeout_s: float) -> R:
        reply, descriptors = self._call(ask, answer, time.monotonic() + timeout_s + ANSWER_MARGIN)
        close_all(descriptors)
        return reply

    def _call(
        self, ask: Callable[[float], protocol.Request], answer: type[R], deadline: float
    ) -> tuple[R, Sequence[int]]:
        """Send what `ask(seconds the daemon may wait)` gives, again after each broken connection."""

        def send(sock: socket.socket) -> tuple[protocol.Reply, list[int]]:
            wait = min(3600.0, max(0.05, deadline - time.monotonic() - ANSWER_MARGIN))
            return exchange(sock, ask(wait), deadline)

        with self._turn_before(deadline):
            reply, descriptors = self._retrying(deadline, send)
        if isinstance(reply, answer):
            return reply, descriptors
        close_all(descriptors)
        if isinstance(reply, protocol.Refused):
            raise DaemonRefused(reply.code, reply.message)
        raise DaemonError(f"{type(reply).__name__} is no answer")

    def _retrying(self, deadline: float, use: Callable[[socket.socket], T]) -> T:
        """`use` a connected socket, anew after each break; a refused hello and a passed deadline end it."""
        pause, last = _FIRST_PAUSE, "not connected"
        while not self._closed and time.monotonic() < deadline:
            try:
                return use(self._connected(deadline))
            except TimeoutError as error:
                self._drop()
                raise DaemonUnavailable(f"{self._path}: no answer in time") from error
            except (ConnectionError, FileNotFoundError, BlockingIOError) as error:
                self._drop()
                last = str(error) or type(error).__name__
            except (OSError, FrameError) as error:
                self._drop()
                raise DaemonError(f"{self._path}: {error}") from error
            except BaseException:
                self._drop()
                raise
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise DaemonUnavailable(f"{self._path}: {'closed here' if self._closed else last}")

    def _connected(self, deadline: float) -> socket.socket:
        if self._sock is not None:
            return self._sock
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._sock = sock
        sock.settimeout(left(deadline))
        sock.connect(self._path)
        reply, descriptors = exchange(sock, self._hello, deadline)
        close_all(descriptors)
        if isinstance(reply, protocol.Refused):
            raise DaemonRefused(reply.code, reply.message)
        if not isinstance(reply, protocol.Welcome):
            raise DaemonError(f"{type(reply).__name__} is no welcome")
        self.welcome = reply

        def send(request: protocol.Request, beside: Sequence[int]) -> protocol.Reply:
            answer, descriptors = exchange(sock, request, deadline, beside)
            close_all(descriptors)
            return answer

        self.kept.hand_back(reply.generation, send)
        return sock

    def _drop(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def _deadline(self, timeout_s: float | None) -> float:
        return time.monotonic() + (self._call_timeout if timeout_s is None else timeout_s)

    @contextlib.contextmanager
    def _turn_before(self, deadline: float) -> Iterator[None]:
        if not self._turn.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise DaemonUnavailable("another thread's call did not end in time")
        try:
            yield
        finally:
            self._turn.release()


def read_stats(path: str, timeout_s: float = 5.0) -> str:
    """What the daemon behind this socket knows, as JSON text; no engine is needed.

    Raises:
        DaemonError: there is no daemon, it refused, or it was silent.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        deadline = time.monotonic() + timeout_s
        try:
            sock.settimeout(timeout_s)
            sock.connect(path)
            reply, descriptors = exchange(sock, protocol.Stats(), deadline)
        except (OSError, FrameError) as error:
            raise DaemonUnavailable(f"{path}: {error}") from error
    close_all(descriptors)
    if not isinstance(reply, protocol.Facts):
        raise DaemonError(f"{path}: {reply}")
    return reply.json
