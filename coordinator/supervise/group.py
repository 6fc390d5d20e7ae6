"""A process group, ended so that no shared memory is left behind. Standard library only: the guard is this very file.

Python's multiprocessing unlinks the shared memory of processes that were killed: its resource tracker does, when all of
them are gone. So a group is killed but for its trackers, which then end by themselves.

As a program it is the guard of a `vnpu up`: it reads lines from standard input, `watch PGID`, `forget PGID`, `remove
PATH`, `done`. End of file without `done` means that the supervisor was killed: every watched group is ended, every
named file or folder goes.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TextIO

TRACKER = b"multiprocessing.resource_tracker"
TRACKERS_S = 5.0
LOOK_AGAIN_S = 0.02


def members(group: int) -> list[int]:
    """Its processes that are not dead yet."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _belongs(entry, group)]


def _belongs(process: Path, group: int) -> bool:
    try:
        state, _, found = (process / "stat").read_bytes().rpartition(b")")[2].split()[:3]
    except OSError:
        return False
    return int(found) == group and state not in (b"Z", b"X")


def kill(group: int) -> None:
    """SIGKILL to all but the trackers. The process and its group are looked at again behind a pidfd: ids are reused."""
    for pid in members(group):
        process = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):
            fd = os.pidfd_open(pid)
            try:
                if _belongs(process, group) and TRACKER not in (process / "cmdline").read_bytes():
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            finally:
                os.close(fd)


def kill_trackers(group: int) -> None:
    """SIGKILL to all that is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def end(groups: list[int]) -> None:
    """Returns when nothing of them is left. For processes that are not our children, so that others wait for them."""
    for group in groups:
        kill(group)
    until = time.monotonic() + TRACKERS_S
    while time.monotonic() < until and any(map(members, groups)):
        time.sleep(LOOK_AGAIN_S)
    for group in groups:
        kill_trackers(group)


def guard(lines: TextIO) -> None:
    """Until `done`, or until the supervisor is gone."""
    groups: set[int] = set()
    paths: list[Path] = []
    for line in lines:
        verb, _, rest = line.rstrip("\n").partition(" ")
        if verb == "watch":
            groups.add(int(rest))
        elif verb == "forget":
            groups.discard(int(rest))
        elif verb == "remove":
            paths.append(Path(rest))
        elif verb == "done":
            return
    end(sorted(groups))
    for path in paths:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    guard(sys.stdin)
