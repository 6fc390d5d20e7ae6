"""A log file that grows, read line by line."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

BLOCK = 1 << 16


class Tail:
    """Hands out whole lines as they appear; a file that is not there yet is an empty one. It goes on with a file that
    takes the place of the old one, and begins anew with one that was cut."""

    def __init__(self, path: Path, begin: int = 0) -> None:
        """`begin`: the byte to start from."""
        self._path = path
        self._at = begin
        self._inode = 0
        self._rest = b""

    def read(self) -> list[str]:
        """The lines that have been completed since the last time, without their ends."""
        self._rest += self._more()
        whole, end, self._rest = self._rest.rpartition(b"\n")
        return (whole + end).decode(errors="replace").splitlines()

    def rest(self) -> list[str]:
        """All that is there, an unfinished last line too."""
        lines = self.read()
        last, self._rest = self._rest, b""
        return [*lines, last.decode(errors="replace")] if last else lines

    def _more(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                here = os.fstat(file.fileno())
                if self._inode not in (0, here.st_ino) or here.st_size < self._at:
                    self._at = 0
                self._inode = here.st_ino
                file.seek(self._at)
                found = file.read()
        except FileNotFoundError:
            return b""
        self._at += len(found)
        return found


def begin_of_last(path: Path, lines: int) -> int:
    """Where the last `lines` lines begin, in bytes; 0 for a file that has fewer, or is absent."""
    if not path.exists():
        return 0
    starts, at = deque([0], maxlen=lines + 1), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found = block.find(b"\n")
            while found >= 0:
                starts.append(at + found + 1)
                found = block.find(b"\n", found + 1)
            at += len(block)
    if not lines:
        return at
    if starts[-1] == at:  # behind the last line
        starts.pop()
    return starts[-lines] if len(starts) >= lines else 0
