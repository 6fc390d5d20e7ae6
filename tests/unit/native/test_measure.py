"""What is measured against the ledger, and what follows."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from native import maps
from native.daemon.measure import trespasses
from native.files import FileId, files, identify, runs

ONE, TWO, OTHER = FileId(1, 10), FileId(1, 11), FileId(2, 10)


def test_mappings_are_found_by_file(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    file.write_bytes(bytes(1 << 16))
    descriptor = os.open(file, os.O_RDWR)
    named = identify(descriptor)
    assert named is not None
    assert named[0] not in maps.mapped()
    with mmap.mmap(descriptor, 1 << 16), mmap.mmap(descriptor, 1 << 15):
        assert maps.mapped()[named[0]] == (1 << 16) + (1 << 15)
        assert maps.mapped(os.getpid())[named[0]] == (1 << 16) + (1 << 15)
    os.close(descriptor)


def test_lines_of_maps() -> None:
    found = maps.parse(
        [
            "7f0000000000-7f0000200000 rw-s 00000000 00:2b 1042                       /#1042 (deleted)",
            "7f0000400000-7f0000600000 r--s 00000000 00:2b 1042                       /#1042 (deleted)",
            "7f0000600000-7f0000601000 rw-p 00000000 00:00 0 ",
            "7f0000601000-7f0000602000 rw-p 00000000 fd:01 7",
        ]
    )
    assert found == {FileId(os.makedev(0, 0x2B), 1042): 4 << 20, FileId(os.makedev(0xFD, 1), 7): 4096}


def test_who_maps_what_is_not_its_own_trespasses() -> None:
    chunks = [(ONE, frozenset({1})), (TWO, frozenset[int]())]
    assert trespasses({1: {ONE: 5, OTHER: 5}}, chunks) == frozenset()
    assert trespasses({1: {ONE: 5, TWO: 5}, 2: {ONE: 5}}, chunks) == {(1, TWO), (2, ONE)}


def test_files_are_written_down_as_runs() -> None:
    named = {5: FileId(1, 50), 6: FileId(1, 51), 7: FileId(1, 53), 9: FileId(1, 54), 10: FileId(2, 55)}
    assert files(runs(named)) == named
    assert len(runs({chunk: FileId(1, 100 + chunk) for chunk in range(1000)})) == 1
    assert len(runs(named)) == 4


def test_what_is_no_file_is_not_identified() -> None:
    reading, writing = os.pipe()
    assert identify(reading) is None
    os.close(reading)
    os.close(writing)
