"""`guard_main.py`: outlives a killed `vnpu up` for the moment it takes to leave nothing behind.

Reads lines from standard input: `watch PGID`, `forget PGID`, `remove PATH`, `done`. End of file without `done` means
that the supervisor was killed: every watched process group gets SIGKILL, every named file goes. Standard library only.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    files: list[str] = []
    for line in sys.stdin:
        verb, _, rest = line.rstrip("\n").partition(" ")
        if verb == "watch":
            groups.add(int(rest))
        elif verb == "forget":
            groups.discard(int(rest))
        elif verb == "remove":
            files.append(rest)
        elif verb == "done":
            return
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()


if __name__ == "__main__":
    main()
