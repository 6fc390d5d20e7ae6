"""What the daemon must remember over its own death: epoch, closed, open and owners of each device, and its processes.

PROTOCOL rule 11. One file for each boot of the machine, replaced whole: written beside, then renamed to a name with the
next number; the highest number counts. Its first line is a header with a SHA-256 of the rest, so that a torn or edited
file is refused and never half believed.

Nothing is fsynced, because enter and leave wait for the journal on every switch: a file outlives the daemon's death
without it, and pages and processes do not outlive the machine's. For the same reason a name is never used twice, and a
file is overwritten in its own space: ext4 sends one that was renamed over another, or cut to nothing, to the disk at
once, and that takes longer than all the rest. A power cut can tear only the file of a boot that is
over, and that file is believed only as far as it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
from pathlib import Path

import msgspec

from native.fences import Holder, Record
from native.files import FileId, FileRun
from native.pool import Extent, Owner
from native.processes import Identity

log = logging.getLogger("vnpu.daemon.journal")

_MAGIC = "vnpu-journal"
_VERSION = 1


class JournalError(Exception):
    """The journal cannot be used; the message says what to do."""


class Known(msgspec.Struct, frozen=True):
    """A process that said hello. `number` names it in `Held`."""

    number: int
    holder: Holder
    role: str
    rank: int
    identity: Identity


class Held(msgspec.Struct, frozen=True):
    """What one process holds of a device."""

    process: int
    holder: Holder
    identity: Identity
    extents: tuple[Extent, ...]

    @property
    def bytes(self) -> int:
        return sum(extent.bytes for extent in self.extents)

    @property
    def chunks(self) -> frozenset[int]:
        return frozenset(chunk for extent in self.extents for chunk in range(extent.first, extent.first + extent.count))


class KeptView(msgspec.Struct, frozen=True):
    """Chunks of `owner` that `holders` may have mapped read-only. Processes by number."""

    id: int
    owner: int
    chunks: tuple[int, ...]
    holders: tuple[int, ...]


class KeptShare(msgspec.Struct, frozen=True):
    """Weights of `owner` that `sharers` may have mapped read-only too. `former`: process numbers of who had them."""

    digest: str
    owner: Owner
    chunks: tuple[int, ...]
    sharers: tuple[Owner, ...]
    former: tuple[int, ...] = ()


class DeviceLedger(msgspec.Struct, frozen=True):
    """`files`: where the chunks lie that somebody holds, so that who hands one back can be believed."""

    record: Record = Record()
    owners: tuple[Held, ...] = ()
    files: tuple[FileRun, ...] = ()
    views: tuple[KeptView, ...] = ()
    shares: tuple[KeptShare, ...] = ()


class KeptMaster(msgspec.Struct, frozen=True):
    """A sealed host master that processes have mapped. `sample`: digest of samples of its content."""

    digest: str
    size: int
    file: FileId
    sample: int
    users: tuple[int, ...]


class HostLedger(msgspec.Struct, frozen=True):
    """What living processes hold of the node's second budget. `saved_kv`: bytes by process number."""

    masters: tuple[KeptMaster, ...] = ()
    saved_kv: dict[int, int] = {}


class Ledger(msgspec.Struct, frozen=True):
    """All that is persisted. `generation` counts the daemon's starts: chunk ids hold it in their upper bits."""

    node: str
    generation: int = 0
    processes: tuple[Known, ...] = ()
    devices: dict[str, DeviceLedger] = {}
    host: HostLedger = HostLedger()


_decode = msgspec.json.Decoder(Ledger).decode
_encode = msgspec.json.Encoder().encode


class Journal:
    """The file `ledger-BOOT.N` in a directory that one daemon owns (it holds a lock on it while open)."""

    def __init__(self, directory: Path, boot: str) -> None:
        """Create the directory (0700) where needed and lock it. `boot` is the machine's boot id.

        Raises:
            JournalError: another daemon uses it.
            OSError: it cannot be created.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._name = f"ledger-{boot}"
        self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise JournalError(
                f"{directory} belongs to a running daemon: stop it or give another --state-dir"
            ) from error
        self._number = max(map(_number, self._of_this_boot()), default=0)
        self._others_gone = False

    @property
    def path(self) -> Path:
        """The newest file of this boot; before the first write it is not there."""
        return self._directory / (f"{self._name}.{self._number}" if self._number else self._name)

    def load(self) -> Ledger | None:
        """The last ledger written, of this boot or else of one before; None where there is none.

        Raises:
            JournalError: this boot's file is damaged, or of a version this daemon does not read.
        """
        if self.path.exists():
            return self._read(self.path)
        for path in self._of_other_boots():
            try:
                return self._read(path)
            except JournalError:
                log.warning("%s was torn when the machine stopped and is passed over: its pages are gone too", path)
        return None

    def write(self, ledger: Ledger) -> None:
        """Replace the ledger: on return it outlives this process. Blocks for the file system: call it on a thread.

        Raises:
            OSError: it could not be written; the last one still stands.
        """
        body = _encode(ledger)
        header = f"{_MAGIC} {_VERSION} {hashlib.sha256(body).hexdigest()}\n".encode("ascii")
        beside, last = self._directory / "new", self.path
        _overwrite(beside, header + body)
        beside.rename(self._directory / f"{self._name}.{self._number + 1}")
        self._number += 1
        with contextlib.suppress(OSError):  # the newest counts, whatever else lies there
            self._clean()
            last.rename(beside)

    def _clean(self) -> None:
        """Once: nobody asks any more for what stood here at the start."""
        if not self._others_gone:
            for path in (*self._of_this_boot(), *self._of_other_boots()):
                if path != self.path:
                    path.unlink(missing_ok=True)
            self._others_gone = True

    def _of_this_boot(self) -> list[Path]:
        return [path for path in self._directory.glob("ledger-*") if _boot(path) == self._name]

    def _of_other_boots(self) -> list[Path]:
        """Newest first."""
        others = [path for path in self._directory.glob("ledger-*") if _boot(path) != self._name]
        return sorted(others, key=lambda path: (path.stat().st_mtime, _number(path)), reverse=True)

    def close(self) -> None:
        """Release the lock; idempotent."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def _read(self, path: Path) -> Ledger:
        header, _, body = path.read_bytes().partition(b"\n")
        words = header.decode("ascii", "replace").split(" ")
        if len(words) != 3 or words[0] != _MAGIC or words[1] != str(_VERSION):
            raise self._damaged("its header is not ours")
        if words[2] != hashlib.sha256(body).hexdigest():
            raise self._damaged("its checksum does not fit")
        try:
            return _decode(body)
        except msgspec.MsgspecError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> JournalError:
        return JournalError(
            f"{self.path} is damaged: {why}. It says who holds device pages, so nothing is guessed: "
            "stop every engine of this node, delete the file, start the daemon again"
        )


def _boot(path: Path) -> str:
    """`ledger-BOOT`; a boot id has no dot."""
    return path.name.partition(".")[0]


def _number(path: Path) -> int:
    """0 for a file without a number, as this daemon's predecessors wrote it."""
    number = path.name.partition(".")[2]
    return int(number) if number.isdecimal() else 0


def _overwrite(path: Path, data: bytes) -> None:
    """In the space that the file has. Never truncated to nothing, see the module."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "wb") as out:
        out.write(data)
        if os.fstat(file).st_size > len(data):
            out.truncate()
