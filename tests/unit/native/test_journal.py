"""The ledger on disk: whole or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from native.fences import Holder, Open, Record
from native.journal import DeviceLedger, Held, Journal, JournalError, Known, Ledger
from native.pool import Extent
from native.processes import Identity
from native.protocol import Kind

HOLDER = Holder("a", "n1")
WHO = Identity(17, 12345, "boot")
LEDGER = Ledger(
    node="local",
    generation=3,
    processes=(Known(1, HOLDER, "worker", 0, WHO),),
    devices={
        "0": DeviceLedger(
            Record("e1", 7, 9, Open(HOLDER, 9, "restore", 100, 60.0)),
            (Held(1, HOLDER, WHO, (Extent(Kind.WEIGHTS, 5, 1 << 24, 4, 2 << 20),)),),
        )
    },
)


@pytest.fixture
def journal(tmp_path: Path):  # type: ignore[no-untyped-def]
    journal = Journal(tmp_path / "state")
    yield journal
    journal.close()


def test_what_was_written_is_read(journal: Journal) -> None:
    assert journal.load() is None
    journal.write(LEDGER)
    assert journal.load() == LEDGER
    journal.write(Ledger("local"))
    assert journal.load() == Ledger("local")


def test_only_the_owner_may_read_it(journal: Journal) -> None:
    journal.write(LEDGER)
    assert journal.path.stat().st_mode & 0o777 == 0o600
    assert journal.path.parent.stat().st_mode & 0o777 == 0o700


def test_every_single_damaged_byte_is_noticed(journal: Journal) -> None:
    journal.write(LEDGER)
    whole = journal.path.read_bytes()
    for place in range(len(whole)):
        journal.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(JournalError, match="damaged"):
            journal.load()


@pytest.mark.parametrize("length", [0, 1, 50, -1])
def test_a_cut_file_is_refused_with_what_to_do(journal: Journal, length: int) -> None:
    journal.write(LEDGER)
    journal.path.write_bytes(journal.path.read_bytes()[:length])
    with pytest.raises(JournalError, match="stop every engine of this node, delete the file"):
        journal.load()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_last_one(journal: Journal, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    journal.write(LEDGER)
    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, fail)
        with pytest.raises(OSError, match="No space"):
            journal.write(Ledger("other"))
    assert journal.load() == LEDGER
    journal.write(Ledger("other"))
    assert journal.load() == Ledger("other")


def test_it_is_durable_before_it_is_seen(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of the file, then the rename, then fsync of the folder."""
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def watched_replace(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    journal.write(LEDGER)
    assert order == ["ledger.new", "rename", "state"]


def test_one_daemon_at_a_time(journal: Journal) -> None:
    with pytest.raises(JournalError, match="belongs to a running daemon"):
        Journal(journal.path.parent)
    journal.close()
    Journal(journal.path.parent).close()
