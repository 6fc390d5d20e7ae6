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
        patch.setattr(Path, "rename", fail)
        with pytest.raises(OSError, match="No space"):
            journal.write(Ledger("other"))
    assert journal.load() == LEDGER
    journal.write(Ledger("other"))
    assert journal.load() == Ledger("other")


def again(journal: Journal) -> Journal:
    """The daemon is started again."""
    journal.close()
    return Journal(journal.path.parent, "now")


def test_a_shorter_ledger_leaves_nothing_of_a_longer_one(journal: Journal) -> None:
    for ledger in (LEDGER, LEDGER, Ledger("local"), Ledger("x"), LEDGER, Ledger("local")):
        journal.write(ledger)
        assert journal.load() == ledger
    names = {path.name for path in journal.path.parent.iterdir()}
    assert names == {"ledger-now.6", "lock", "new"}


def test_the_newest_counts_wherever_the_daemon_was_killed(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the new name it is the last ledger, after it the new one, though the last still lies there."""
    renames: list[Path] = []
    rename = Path.rename

    def counted(path: Path, target: Path) -> Path:
        renames.append(path)
        if len(renames) > allowed:
            raise KeyboardInterrupt
        return rename(path, target)

    for allowed, found in ((0, LEDGER), (1, Ledger("other")), (2, Ledger("other"))):
        journal.write(LEDGER)
        renames.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", counted)
            try:
                journal.write(Ledger("other"))
            except KeyboardInterrupt:
                assert allowed < 2
        journal = again(journal)
        assert journal.load() == found
        journal.write(Ledger("next"))
        assert journal.load() == Ledger("next")
        assert len(list(journal.path.parent.glob("ledger-*"))) == 1
    journal.close()


def test_a_ledger_without_a_number_is_the_first(journal: Journal) -> None:
    journal.write(LEDGER)
    journal.path.rename(journal.path.parent / "ledger-now")
    journal = again(journal)
    assert journal.load() == LEDGER
    journal.write(Ledger("next"))
    assert [path.name for path in journal.path.parent.glob("ledger-*")] == ["ledger-now.1"]
    journal.close()


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
