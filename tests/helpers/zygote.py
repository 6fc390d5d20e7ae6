"""Importer processes by the hundred: forked from one that has everything imported and nothing opened.

`python tests/helpers/zygote.py CASE FD` reads descriptors of sockets from FD, forks a child for each and tells its pid.
A child opens the driver of that case and answers requests: `[verb, ...]`, a descriptor beside it where one is shared.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]


def child(line: socket.socket, case_id: str) -> None:
    from native._native import DriverError
    from tests.helpers.drivers import case_named

    driver = case_named(case_id).open()
    line.send(json.dumps(driver.share_id()).encode())
    while True:
        words, fds, _, _ = socket.recv_fds(line, 4096, 1)
        if not words:
            os._exit(0)
        verb, *args = json.loads(words)
        if verb == "import_handle" and fds:
            args[0] = fds[0]
        try:
            answer: Any = ["done", getattr(driver, verb)(*args)] if verb != "facts" else ["done", None]
        except DriverError as error:
            answer = ["refused", error.name]
        for fd in fds:
            os.close(fd)
        stats = driver.stats()
        facts = [stats.handles, stats.imported_bytes, stats.mapped_bytes, stats.reservations]
        line.send(json.dumps([*answer, facts]).encode())


def main(case_id: str, line: socket.socket) -> None:
    importlib.import_module("tests.helpers.drivers")  # it and all it needs are there before the first fork
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        words, fds, _, _ = socket.recv_fds(line, 16, 1)
        if not words:
            return
        pid = os.fork()
        if not pid:
            line.close()
            child(socket.socket(fileno=fds[0]), case_id)
        os.close(fds[0])
        line.send(str(pid).encode())


class Importer:
    """One child. `call(verb, ...)` gives `(result or error's name, facts)`."""

    def __init__(self, line: socket.socket, pid: int) -> None:
        self.line = line
        self.pidfd = os.pidfd_open(pid)
        self.pid = pid
        self.share_id = int(json.loads(self._hear()))

    def _hear(self) -> bytes:
        words = self.line.recv(4096)
        assert words, f"importer {self.pid} has died"
        return words

    def call(self, verb: str, *args: object, fd: int | None = None) -> tuple[str, Any, list[int]]:
        socket.send_fds(self.line, [json.dumps([verb, *args]).encode()], [] if fd is None else [fd])
        how, result, facts = json.loads(self._hear())
        return how, result, facts

    def kill(self) -> None:
        """SIGKILL; returns when nothing of it is left."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        gone, _, _ = select.select([self.pidfd], [], [], 60)
        assert gone
        os.close(self.pidfd)
        self.line.close()


class Zygote:
    """Starts importers of one case."""

    def __init__(self, case_id: str, env: dict[str, str]) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here.settimeout(60)
        command = [sys.executable, "-m", "tests.helpers.zygote", case_id, str(there.fileno())]
        self.process = subprocess.Popen(command, env=env, cwd=ROOT, pass_fds=[there.fileno()])
        there.close()
        self.line = here

    def importer(self) -> Importer:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here.settimeout(60)
        socket.send_fds(self.line, [b"fork"], [there.fileno()])
        there.close()
        return Importer(here, int(self.line.recv(16)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.line.close()
        self.process.kill()
        self.process.wait(60)


if __name__ == "__main__":
    main(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
