"""Processes as the daemon knows them: named by the kernel, watched and killed through a pidfd, never by a bare pid.

A pidfd comes from the socket itself (SO_PEERPIDFD, Linux 6.5), so that it names the process that connected even across
PID namespaces; on older kernels from pidfd_open(SO_PEERCRED's pid), which needs a common PID namespace. Across
unrelated PID namespaces a pidfd proves death but does not kill: for that the daemon runs in the host's (`pid: host`).
"""

from __future__ import annotations

import errno
import itertools
import os
import select
import signal
import socket
import struct
from pathlib import Path

import msgspec

SO_PEERPIDFD = 77
_UCRED = struct.Struct("3i")
_strangers = itertools.count(1)


class Gone(Exception):
    """The process is no more."""


class Identity(msgspec.Struct, frozen=True, order=True):
    """One process for ever: its pid as this namespace numbers it (0: it does not), when it started, in ticks since
    boot, and which boot."""

    pid: int
    start_time: int
    boot_id: str


class Peer(msgspec.Struct, frozen=True):
    """What the kernel says of the other end of a Unix socket."""

    pid: int
    uid: int


class Process:
    """A living (or just dead) process that this daemon holds a pidfd of. `key` is equal for equal processes."""

    def __init__(self, pidfd: int, identity: Identity) -> None:
        self._pidfd = pidfd
        self.identity = identity
        self.key = identity if identity.pid else _key_of_stranger(pidfd)

    def fileno(self) -> int:
        return self._pidfd

    def dead(self) -> bool:
        """Proven: its pidfd is readable, so all its threads are gone and its memory is unmapped."""
        if self._pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def kill(self) -> bool:
        """SIGKILL; works on a stopped process too, and nothing happens to a dead one. False: this process must not,
        since the other is of a PID namespace that is not this one's or below it (pidfd_send_signal(2), EINVAL)."""
        if self._pidfd < 0:
            return True
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return True
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
            return False
        return True

    def close(self) -> None:
        """Let go of the pidfd; idempotent."""
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def __str__(self) -> str:
        return f"pid {self.identity.pid}" if self.identity.pid else "a process of another PID namespace"


def boot_id() -> str:
    """Random id of this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def start_time(pid: int) -> int:
    """When `pid` started, in clock ticks since boot (proc(5), field 22).

    Raises:
        Gone: there is no such process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise Gone(f"pid {pid} is gone") from error
    # The command name may hold spaces and parentheses: count from the last one.
    return int(stat.rpartition(")")[2].split()[19])


def credentials(sock: socket.socket) -> Peer:
    """Pid and uid of the process that connected (SO_PEERCRED); pid 0 where it is of an unrelated PID namespace."""
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid, uid)


def peer_process(sock: socket.socket, *, peerpidfd: bool = True) -> Process:
    """The process that connected. `peerpidfd` false: do as a kernel without SO_PEERPIDFD does.

    Raises:
        Gone: it died meanwhile, or it cannot be watched from here.
    """
    peer = credentials(sock)
    pidfd = _pidfd_of_socket(sock) if peerpidfd else None
    if pidfd is None:
        pidfd = _pidfd_of_pid(peer.pid)
        # While the other end is open its process lives (unless a child inherited it), so its pid is not another's yet.
        if _hung_up(sock):
            os.close(pidfd)
            raise Gone(f"pid {peer.pid} hung up")
    try:
        started = start_time(peer.pid) if peer.pid else 0
    except Gone:
        os.close(pidfd)
        raise
    return Process(pidfd, Identity(peer.pid, started, boot_id()))


def reopen(identity: Identity) -> Process:
    """The process of a persisted identity.

    Raises:
        Gone: it is proven dead: another boot, no such pid, or a pid that belongs to a later process.
        PermissionError: a process of another PID namespace cannot be found again by its identity.
    """
    if identity.boot_id != boot_id():
        raise Gone("the machine was booted since")
    if identity.pid == 0:
        raise PermissionError("a process of another PID namespace cannot be found again")
    pidfd = _pidfd_of_pid(identity.pid)
    process = Process(pidfd, identity)
    try:
        # The pidfd was opened first: if the start time fits now, it is the same process that the pidfd names.
        if start_time(identity.pid) != identity.start_time or process.dead():
            raise Gone(f"pid {identity.pid} is another process now")
    except Gone:
        process.close()
        raise
    return process


def _pidfd_of_socket(sock: socket.socket) -> int | None:
    """None: this kernel has no SO_PEERPIDFD."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return None
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENODATA):
            raise Gone("the peer is gone") from error
        raise


def _pidfd_of_pid(pid: int) -> int:
    if pid <= 0:
        raise Gone("the peer is in another PID namespace: this kernel needs `pid: host` to watch it")
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise Gone(f"pid {pid} is gone") from error


def _hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def _key_of_stranger(pidfd: int) -> Identity:
    """A process without a pid here is told from others by its pidfd's inode, where the kernel has pidfs (6.9); on
    others each of its connections counts as a process of its own, which only makes the watching more careful."""
    inode = os.fstat(pidfd).st_ino if Path(f"/proc/self/fd/{pidfd}").readlink().name.startswith("pidfd:") else 0
    return Identity(0, inode or -next(_strangers), "")
