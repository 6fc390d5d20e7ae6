"""A listening engine: one thread that accepts, one thread for each client, and a bound on how many."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from transfer.errors import TransferError
from transfer.transports.channel import MAX_MESSAGE, Channel
from transfer.transports.deadline import Deadline
from transfer.transports.pace import Pace
from transfer.transports.trust import Trust

log = logging.getLogger("vllm.vnpu.transfer")

HANDSHAKE_S = 5.0
"""A stranger who says nothing is gone after that; it holds one thread and no more meanwhile."""
CLIENTS = 64
STOP_S = 5.0
_POLL_S = 0.2

Serve = Callable[[Channel], None]
"""Serves one client until it goes. A TransferError that it raises is logged and ends that client only."""


class Listener:
    """Serves one service at `host:port`; port 0 takes a free one. A context manager that stops.

    A client that is silent, slow or sends garbage costs the others nothing: each has its own thread, and every read
    and write of it a deadline. Beyond `clients` of them, more wait in the kernel's queue.
    """

    def __init__(
        self,
        host: str,
        port: int,
        trust: Trust,
        service: bytes,
        serve: Serve,
        *,
        pace: Pace | None = None,
        clients: int = CLIENTS,
        max_message: int = MAX_MESSAGE,
        cpus: Sequence[int] = (),
    ) -> None:
        """`cpus`: processors its threads run on; none: where the caller's do.

        Raises:
            TransferError: the port is taken or may not be used.
        """
        self._service, self._serve = service, serve
        self._trust = trust
        self._pace = pace
        self._max_message = max_message
        self._cpus = set(cpus)
        self._room = threading.Semaphore(clients)
        self._lock = threading.Lock()
        self._clients: dict[threading.Thread, socket.socket] = {}
        self._stopping = False
        self._sock = _bound(host, port)
        self.port: int = self._sock.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="vnpu-listen", daemon=True)
        self._thread.start()

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def clients(self) -> int:
        """Connections that are open now, strangers too."""
        with self._lock:
            return len(self._clients)

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Listen no more, break every connection, and wait for the threads. Idempotent."""
        self._stopping = True
        self._thread.join(timeout_s)
        with self._lock:
            serving = dict(self._clients)
        for sock in serving.values():
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in serving:
            if thread is not threading.current_thread():
                thread.join(timeout_s)

    def _accept(self) -> None:
        self._settle()
        with self._sock:
            while not self._stopping:
                if not self._room.acquire(timeout=_POLL_S):
                    continue
                try:
                    sock, _ = self._sock.accept()
                except OSError as error:  # the poll's timeout, or a connection that was gone before it was taken
                    self._room.release()
                    if not isinstance(error, TimeoutError):
                        log.warning("accept: %s", error)
                    continue
                self._start(sock)

    def _start(self, sock: socket.socket) -> None:
        thread = threading.Thread(target=self._client, args=(sock,), name="vnpu-serve", daemon=True)
        with self._lock:
            self._clients[thread] = sock
        thread.start()

    def _client(self, sock: socket.socket) -> None:
        try:
            self._settle()
            with self._trust.accept(sock, self._service, Deadline.after(HANDSHAKE_S)) as channel:
                channel.configure(max_message=self._max_message, pace=self._pace)
                with self._lock:
                    self._clients[threading.current_thread()] = channel.socket
                self._serve(channel)
        except TransferError as error:
            log.info("a client of %s: %s", self._service.decode(), error)
        finally:
            with self._lock:
                del self._clients[threading.current_thread()]
            self._room.release()

    def _settle(self) -> None:
        """Threads inherit the processors of who starts them; vLLM has bound the worker's to a few."""
        if self._cpus:
            os.sched_setaffinity(0, self._cpus)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, dualstack_ipv6=host == "::")
    except (OSError, OverflowError) as error:
        raise TransferError(f"cannot listen at {host}:{port}: {error}", remedy="give another port, or 0") from error
    sock.settimeout(_POLL_S)
    return sock
