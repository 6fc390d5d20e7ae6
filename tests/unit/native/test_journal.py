"""The ledger on disk: whole or refused."""

from __future__ import annotations

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
    journal = Journal(tmp_path / "state", "now")
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


def test_a_write_that_fails_leaves_the_last_one(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    journal.write(LEDGER)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            journal.write(Ledger("other"))
    assert journal.load() == LEDGER
    journal.write(Ledger("other"))
    assert journal.load() == Ledger("other")


@pytest.fixture
def later(journal: Journal):  # type: ignore[no-untyped-def]
    """The same directory after the machine has been restarted."""
    journal.write(LEDGER)
    journal.close()
    later = Journal(journal.path.parent, "later")
    yield later
    later.close()


def test_the_ledger_of_the_last_boot_is_read_until_there_is_a_new_one(journal: Journal, later: Journal) -> None:
    assert later.load() == LEDGER
    later.write(Ledger("local", generation=4))
    assert later.load() == Ledger("local", generation=4)
    assert not journal.path.exists()


def test_a_file_that_the_last_boot_tore_is_passed_over(journal: Journal, later: Journal) -> None:
    journal.path.write_bytes(journal.path.read_bytes()[:50])
    assert later.load() is None


def test_one_daemon_at_a_time(journal: Journal) -> None:
    with pytest.raises(JournalError, match="belongs to a running daemon"):
        Journal(journal.path.parent, "now")
    journal.close()
    Journal(journal.path.parent, "now").close()
