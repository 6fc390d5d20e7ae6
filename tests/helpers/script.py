"""A second process that a test talks with: a script that `tell`s values and `hear`s words."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]
PROLOGUE = """
    import ctypes, json, os, socket, sys
    line = socket.socket(fileno=int(sys.argv.pop()))

    def tell(value):
        line.sendall(json.dumps(value).encode() + b"\\n")

    def hear():
        words, fds, _, _ = socket.recv_fds(line, 256, 1)
        if not words:
            raise SystemExit
        return fds[0] if fds else words.decode()
"""


class Script:
    """`with Script(setup, code, args, env) as other`: the script runs; it is killed where it has not ended at the end.

    In the script `tell(value)` sends JSON, `hear()` waits for `say`: words, or a descriptor.
    """

    def __init__(self, setup: str, code: str, args: Sequence[object], env: Mapping[str, str]) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here.settimeout(60)
        text = "\n".join(textwrap.dedent(part) for part in (PROLOGUE, setup, code))
        command = [sys.executable, "-c", text, *map(str, args), str(there.fileno())]
        self.process = subprocess.Popen(
            command, env=dict(env), cwd=ROOT, pass_fds=[there.fileno()], stderr=subprocess.PIPE, text=True
        )
        there.close()
        self._line = here
        self._lines = here.makefile("r")

    def answer(self) -> Any:
        """What the script tells next."""
        text = self._lines.readline()
        if not text:
            _, errors = self.process.communicate(timeout=60)
            raise AssertionError(f"the script ended\n{errors}")
        return json.loads(text)

    def take_descriptor(self) -> int:
        """A descriptor that the script sends beside a line; nothing else may be on its way."""
        data, fds, _, _ = socket.recv_fds(self._line, 256, 1)
        assert fds, f"the script sent {data!r}"
        return fds[0]

    def say(self, words: str, fd: int | None = None) -> None:
        socket.send_fds(self._line, [words.encode()], [] if fd is None else [fd])

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.process.kill()
        self.process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._line.close()
        self.kill()
        if self.process.stderr is not None:
            self.process.stderr.close()
