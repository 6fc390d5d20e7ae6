"""The files that memory lies in: which one a descriptor names. PURE, but for asking the kernel.

A file is named by its file system and its inode. As long as anybody has a descriptor of it, no other file of this boot
is called the same; so a descriptor that names what the journal names is of that very memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping

import msgspec


class FileId(msgspec.Struct, frozen=True, order=True):
    """`st_dev` and `st_ino` of stat(2)."""

    device: int
    inode: int


class FileRun(msgspec.Struct, frozen=True):
    """Chunks `first … first + count - 1` lie in the files `inode … inode + count - 1` of one file system."""

    first: int
    count: int
    device: int
    inode: int


def identify(descriptor: int) -> tuple[FileId, int] | None:
    """Which file this is, and its size in bytes; None: no regular file, so not memory of ours. Raises OSError."""
    facts = os.fstat(descriptor)
    return (FileId(facts.st_dev, facts.st_ino), facts.st_size) if stat.S_ISREG(facts.st_mode) else None


def runs(files: Mapping[int, FileId]) -> tuple[FileRun, ...]:
    """Short to write down: a daemon makes its files one after the other."""
    return tuple(_runs(files))


def _runs(files: Mapping[int, FileId]) -> Iterator[FileRun]:
    run: FileRun | None = None
    for chunk, file in sorted(files.items()):
        if run is not None and (chunk - run.first, file.inode - run.inode, file.device) == (
            run.count,
            run.count,
            run.device,
        ):
            run = msgspec.structs.replace(run, count=run.count + 1)
            continue
        if run is not None:
            yield run
        run = FileRun(chunk, 1, file.device, file.inode)
    if run is not None:
        yield run


def files(runs: tuple[FileRun, ...]) -> dict[int, FileId]:
    """What `runs` wrote down."""
    return {run.first + i: FileId(run.device, run.inode + i) for run in runs for i in range(run.count)}
