"""The supervisor's end of the guard: a small process that kills what is left when the supervisor itself is killed.

PR_SET_PDEATHSIG takes the children along, but not theirs: an engine is several processes. The guard knows the process
group of each child and notices the supervisor's death by the end of a pipe, which no signal can prevent.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import TracebackType

_MAIN = Path(__file__).with_name("group.py")
_STOP_S = 10.0


class Guard:
    """Use as a context manager around the life of all children; leaving it in order makes the guard end silently."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_MAIN)],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
            bufsize=1,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def watch(self, group: int) -> None:
        self._tell(f"watch {group}")

    def forget(self, group: int) -> None:
        self._tell(f"forget {group}")

    def remove(self, path: Path) -> None:
        """That file or folder goes too, should the supervisor be killed."""
        self._tell(f"remove {path}")

    def _tell(self, line: str) -> None:
        pipe = self._process.stdin
        if pipe is not None and self._process.poll() is None:
            pipe.write(line + "\n")

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._tell("done")
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
