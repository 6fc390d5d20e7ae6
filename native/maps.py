"""Which of given files a process has mapped, and how much of them: what the kernel says, against what the ledger says.

Source: `/proc/<pid>/maps` (proc_pid_maps(5)). It costs no walk over pages, unlike smaps, so it may be read while an
engine serves.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from native.files import FileId


def mapped(pid: int | str = "self") -> dict[FileId, int]:
    """Bytes of address space by mapped file.

    Raises:
        OSError: the process is gone or may not be looked at.
    """
    return parse(Path(f"/proc/{pid}/maps").read_text("utf-8", "replace").splitlines())


def parse(lines: Iterable[str]) -> dict[FileId, int]:
    """Of lines like `7f0000000000-7f0000200000 rw-s 00000000 00:2b 1042   /dev/zero (deleted)`."""
    total: dict[FileId, int] = {}
    for line in lines:
        addresses, _, _, device, inode, *_ = line.split(maxsplit=5)
        if inode == "0":
            continue
        start, _, end = addresses.partition("-")
        major, _, minor = device.partition(":")
        file = FileId(os.makedev(int(major, 16), int(minor, 16)), int(inode))
        total[file] = total.get(file, 0) + int(end, 16) - int(start, 16)
    return total
