"""Puppets by the thousand: a process that has imported everything and forks one for each connection it gets.

In the test: `Brood.start(…)`, then `brood.puppet(…)`. In the process (`python tests/helpers/brood.py SOCKET`): a
child for each connection, which first says its pid and then does what it is told by lines of JSON, as a puppet does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from types import TracebackType

from tests.helpers.puppet import _answer, _Hands

PATIENCE_S = 60.0
ROOT = Path(__file__).resolve().parents[2]


class Forked:
    """The test's end of one puppet."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = pid
        self.dead = False
        self._reader = reader
        self._writer = writer

    async def call(self, do: str, *args: object) -> tuple[str, object]:
        """`done`, `refused` or `failed`, and with what. Raises ConnectionError where it died."""
        self._writer.write(json.dumps([do, *args]).encode() + b"\n")
        async with asyncio.timeout(PATIENCE_S):
            line = await self._reader.readline()
        if not line:
            raise ConnectionError("the puppet died")
        kind, value = json.loads(line)
        return kind, value

    async def kill(self) -> None:
        """SIGKILL; returns when it is dead."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        await self.ended()

    async def ended(self) -> None:
        """Its end of the connection closes with it; what it said last is passed over."""
        async with asyncio.timeout(PATIENCE_S):
            while await self._reader.read(1 << 16):
                pass
        self.dead = True
        self._writer.close()


class Brood:
    """Ends with the test, and all its puppets with it."""

    def __init__(self, process: asyncio.subprocess.Process, path: Path) -> None:
        self._process = process
        self._path = path

    @classmethod
    async def start(cls, path: Path) -> Brood:
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, str(path), stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            assert await process.stdout.readline() == b"ready\n"
        return cls(process, path)

    async def __aenter__(self) -> Brood:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        await self._process.wait()
        await asyncio.sleep(0)

    async def puppet(self, daemon: Path, engine: str, nonce: str) -> Forked:
        """A new process with clients of that engine: its worker, and its agent."""
        reader, writer = await asyncio.open_unix_connection(self._path)
        writer.write(json.dumps([str(daemon), engine, nonce]).encode() + b"\n")
        async with asyncio.timeout(PATIENCE_S):
            return Forked(int(await reader.readline()), reader, writer)


def _main(path: str) -> None:
    import ctypes

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
                listener.close()
                _serve(connection)
                os._exit(0)
            connection.close()


def _serve(connection: socket.socket) -> None:
    with connection.makefile("rw") as lines:
        path, engine, nonce = json.loads(lines.readline())
        lines.write(f"{os.getpid()}\n")
        lines.flush()
        both = _Both(path, engine, nonce)
        for line in lines:
            lines.write(json.dumps(_answer(both, line)) + "\n")
            lines.flush()


class _Both(_Hands):
    """Worker and agent in one process."""

    def __init__(self, path: str, engine: str, nonce: str) -> None:
        from native.client import Client

        super().__init__(path, engine, nonce, "worker", 0)
        self.agent = Client(path, engine, nonce, "agent", kept=self.client.kept)

    def enter(self, device: str, epoch: str, revision: int, timeout_s: float) -> list[object]:
        opened = self.agent.enter(device, epoch, revision, timeout_s)
        return [opened.revision, opened.bytes]

    def leave(self, device: str, epoch: str, revision: int) -> None:
        self.agent.leave(device, epoch, revision)


if __name__ == "__main__":
    _main(sys.argv[1])
