"""What lies in `.vnpu`: the folder of one running node, held by a lock, and `run.json` for other commands."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import msgspec

from coordinator.errors import ConfigError, VnpuError
from coordinator.sizes import show_size

SOCKET_LIMIT = 107
"""Bytes of a Unix socket's path (unix(7), sun_path)."""
LEAST_FREE = 256 << 20
"""Bytes that etcd's data (two segments of 64 MB of its log, and its snapshots) and the logs of a run need at least."""
_FAULT = re.compile(r"Error|error:|panic:|\"level\":\"(?:error|panic|fatal)\"|\b(?:ERROR|CRITICAL)\b")
_CHATTER = re.compile(r"\"level\":\"(?:debug|info|warn)\"|\b(?:DEBUG|INFO)\b|UserWarning|^\s+")
WORDS = 300
_RECORD = struct.Struct("hhlli")
"""`struct flock` of fcntl(2): type, whence, start, length, pid."""


class Process(msgspec.Struct, frozen=True):
    """One process of the node; `pid` is 0 while it is down, `url` empty where it has none, `state` as
    `keeper.State` has it."""

    name: str
    kind: str
    pid: int
    log: str
    url: str = ""
    state: str = ""


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """`run.json`: where a running node's parts are. Paths are absolute. It is there as soon as etcd, daemon and
    coordinator are; `ready` once every engine has come up or failed for good."""

    version: int = 1
    pid: int
    ready: bool
    node: str
    etcd: tuple[str, ...]
    gateway: str
    admin: str
    socket: str
    processes: tuple[Process, ...]


class NotRunning(VnpuError):
    """No `vnpu up` runs on this folder."""


class RunDir:
    """Paths below one run folder, all absolute."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.socket = self.root / "daemon.sock"
        self.run_file = self.root / "run.json"
        self.logs = self.root / "logs"
        self.up_log = self.root / "up.log"
        self.etcd = self.root / "etcd"
        self.daemon = self.root / "daemon"
        self.config = self.root / "config.json"
        self.transfer_key = self.root / "transfer.key"

    def log(self, name: str) -> Path:
        return self.logs / f"{quote(name, safe='')}.log"

    def write(self, run: RunFile) -> None:
        """In one step: a reader sees the old file or the new one. 0600: the endpoints may hold etcd's password."""
        new = self.run_file.with_suffix(".new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_bytes(msgspec.json.format(msgspec.json.encode(run)) + b"\n")
        new.replace(self.run_file)

    def read(self) -> RunFile:
        """Raises NotRunning where there is none, or where its writer is gone."""
        remedy = "start it: vnpu up --config vnpu.yaml; or name its folder: --run-dir DIR"
        try:
            run = msgspec.json.decode(self.run_file.read_bytes(), type=RunFile)
            os.kill(run.pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            raise NotRunning(f"no node is running in {self.root}", remedy=remedy) from None
        except msgspec.MsgspecError as error:
            raise NotRunning(f"{self.run_file} is not readable: {error}", remedy=remedy) from None
        except PermissionError:
            pass  # it runs, as somebody else
        return run

    def owner(self) -> int:
        """The process id of the `vnpu up` that has this folder, of another process than ours; 0: nobody has.

        The kernel names the holder of the lock (fcntl(2), F_GETLK), so a number that was used again cannot deceive."""
        try:
            with (self.root / "lock").open("rb") as lock:
                asked = _RECORD.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                kind, _, _, _, pid = _RECORD.unpack(fcntl.fcntl(lock, fcntl.F_GETLK, asked))
        except (FileNotFoundError, NotADirectoryError):
            return 0
        return 0 if kind == fcntl.F_UNLCK else int(pid)

    def run_of(self, owner: int) -> RunFile | None:
        """The run file that this owner has written; None: it has not come so far."""
        try:
            run = self.read()
        except NotRunning:
            return None
        return run if run.pid == owner else None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Makes the folder ours, 0700, until the block ends. Raises ConfigError when another `vnpu up` has it, when its
        path is too long for a socket, when it cannot be written, or has no room."""
        if len(os.fsencode(self.socket)) > SOCKET_LIMIT:
            raise ConfigError(f"{self.socket} is too long for a Unix socket", remedy="choose a shorter --run-dir")
        with ExitStack() as stack:
            try:
                self._take(stack)
            except OSError as error:
                remedy = "make it a folder of yours, or name another: --run-dir DIR"
                raise ConfigError(f"{self.root} cannot be used: {error.strerror}", remedy=remedy) from None
            yield

    def _take(self, stack: ExitStack) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = stack.enter_context((self.root / "lock").open("a+b"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of a record lock the kernel tells who holds it
        except BlockingIOError:
            remedy = "stop that one, or name another folder: --run-dir DIR"
            raise ConfigError(f"another `vnpu up` runs in {self.root}", remedy=remedy) from None
        if (free := shutil.disk_usage(self.root).free) < LEAST_FREE:
            remedy = f"free {show_size(LEAST_FREE)} there, or name another folder: --run-dir DIR"
            raise ConfigError(f"{self.root} has no room: {show_size(free)} are free", remedy=remedy)
        self._turn_logs()
        self.daemon.mkdir(mode=0o700, exist_ok=True)
        self._make_key()
        self.clear()
        stack.callback(self.clear)

    def _make_key(self) -> None:
        """What the engines of this node prove to each other before they stream weights. It outlives a run, so that it
        can be copied to other nodes."""
        with suppress(FileExistsError):
            descriptor = os.open(self.transfer_key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))

    def _turn_logs(self) -> None:
        """A run begins with empty logs; those of the run before stay beside them as `.log.1`."""
        self.logs.mkdir(exist_ok=True)
        for old in self.logs.glob("*.log"):
            turn(old)
        if self.up_log.exists() and not _is_output(self.up_log):
            turn(self.up_log)

    def last_words(self, name: str) -> str:
        """The last line of that process's log that names an error, else its last that says something; may be empty."""
        try:
            with self.log(name).open("rb") as log:
                cut = log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
                lines = log.read().decode(errors="replace").rstrip().splitlines()[1 if cut else 0 :]
        except FileNotFoundError:
            return ""
        faults = [line for line in lines if _FAULT.search(line)]
        telling = [line for line in lines if not _CHATTER.search(line)]
        return (faults or telling or [""])[-1].strip()[:WORDS]

    def clear(self) -> None:
        """Removes what must not outlive a run, logs excepted."""
        for path in (self.run_file, self.run_file.with_suffix(".new"), self.socket):
            path.unlink(missing_ok=True)

    def forget_store(self) -> None:
        """An embedded etcd lives as long as its `vnpu up`, and the daemon's journal is only true beside it."""
        for folder in (self.etcd, self.daemon):
            shutil.rmtree(folder, ignore_errors=True)
        self.daemon.mkdir(mode=0o700)


def turn(log: Path) -> None:
    """The log of the run before stays beside the new one."""
    if log.exists():
        log.replace(log.with_name(log.name + ".1"))


def _is_output(path: Path) -> bool:
    """Whether what we say goes there: `vnpu up -d` has opened it for us."""
    try:
        return os.path.samestat(os.fstat(sys.__stdout__.fileno()), path.stat()) if sys.__stdout__ else False
    except (OSError, ValueError):
        return False
