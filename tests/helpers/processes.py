"""Looking at processes from outside."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path


def alive(pid: int) -> bool:
    """Zombies count as dead: they hold nothing."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def wait_gone(pid: int, timeout_s: float = 60.0) -> None:
    """Returns when the process has ended. Fails after `timeout_s`."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        readable, _, _ = select.select([fd], [], [], timeout_s)
        assert readable, f"process {pid} is still there"
    finally:
        os.close(fd)


def first_line(path: Path, timeout_s: float = 60.0) -> str:
    """The file's first line, as soon as another process has written it whole."""
    until = time.monotonic() + timeout_s
    while True:
        line, end, _ = (path.read_text() if path.exists() else "").partition("\n")
        if end:
            return line
        assert time.monotonic() < until, f"nothing was written to {path}"
        time.sleep(0.01)
