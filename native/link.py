"""One connection to the node daemon: synchronous, every call with a deadline, reconnects and says hello by itself.

A connection that breaks mid-call (the daemon was restarted) is made anew within the call's deadline and the request is
sent again: every request is idempotent. Where only the deadline passed, nothing is sent again: the caller decides. To a
daemon that was restarted it first hands back what its process keeps (`native.kept`).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar

from native import protocol
from native.frames import FrameError, close_all, exchange, left
from native.kept import Kept
from native.protocol import Code

ANSWER_MARGIN = 5.0
"""Seconds a client waits longer than it asked the daemon to wait, so that the daemon's own answer arrives first."""

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


class Link:
    """For one process of one engine. Thread-safe: calls take turns. What can be asked is `native.client`'s."""

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

    def sibling(self) -> Self:
        """Another connection of the same process, for what would block this one (`listen`)."""
        hello = self._hello
        return type(self)(
            self._path,
            hello.engine,
            hello.nonce,
            hello.role,
            hello.rank,
            call_timeout=self._call_timeout,
            kept=self.kept,
        )

    def __enter__(self) -> Self:
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
