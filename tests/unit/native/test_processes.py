"""Processes by pidfd: real ones."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from native.processes import Gone, Identity, boot_id, credentials, peer_process, reopen, start_time

CONNECT = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sys.stdin.read()
"""


@pytest.fixture(params=[True, False], ids=["SO_PEERPIDFD", "pidfd_open"])
def peerpidfd(request: pytest.FixtureRequest) -> bool:
    """What the kernel offers, and what an older one does."""
    offered: bool = request.param
    return offered


@pytest.fixture
def connected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A process and our end of its connection."""
    path = str(tmp_path_factory.mktemp("s") / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with subprocess.Popen([sys.executable, "-c", CONNECT, path], stdin=subprocess.PIPE) as child:
            ours, _ = listener.accept()
            with ours:
                yield child, ours
            child.kill()


def test_the_kernel_says_who_connected(
    connected: tuple[subprocess.Popen[bytes], socket.socket], peerpidfd: bool
) -> None:
    child, ours = connected
    process = peer_process(ours, peerpidfd=peerpidfd)
    assert process.identity == Identity(child.pid, start_time(child.pid), boot_id())
    assert credentials(ours).uid == os.getuid()
    assert not process.dead()
    again = peer_process(ours, peerpidfd=peerpidfd)
    assert again.key == process.key
    again.close()
    process.close()


def test_death_is_proven_though_nobody_reaped(
    connected: tuple[subprocess.Popen[bytes], socket.socket], peerpidfd: bool
) -> None:
    child, ours = connected
    process = peer_process(ours, peerpidfd=peerpidfd)
    child.send_signal(signal.SIGSTOP)
    assert not process.dead()
    process.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process.dead()
    process.kill()
    process.close()


def test_a_peer_that_is_gone_is_told(connected: tuple[subprocess.Popen[bytes], socket.socket], peerpidfd: bool) -> None:
    child, ours = connected
    child.kill()
    child.wait()
    try:
        process = peer_process(ours, peerpidfd=peerpidfd)
    except Gone:
        return
    assert process.dead()  # newer kernels name a dead peer all the same
    process.close()


def test_a_process_is_found_again_by_its_identity(connected: tuple[subprocess.Popen[bytes], socket.socket]) -> None:
    child, ours = connected
    process = peer_process(ours)
    found = reopen(process.identity)
    assert not found.dead()
    found.kill()
    child.wait()
    assert process.dead()
    with pytest.raises(Gone):
        reopen(process.identity)
    found.close()
    process.close()


def test_another_process_of_the_same_pid_is_not_taken_for_it() -> None:
    mine = Identity(os.getpid(), start_time(os.getpid()), boot_id())
    reopen(mine).close()
    for wrong in (
        msgspec.structs.replace(mine, start_time=mine.start_time - 1),
        msgspec.structs.replace(mine, boot_id="another boot"),
    ):
        with pytest.raises(Gone):
            reopen(wrong)
    with pytest.raises(PermissionError):
        reopen(msgspec.structs.replace(mine, pid=0))


def test_no_descriptor_is_left(connected: tuple[subprocess.Popen[bytes], socket.socket], peerpidfd: bool) -> None:
    child, ours = connected
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(10):
        process = peer_process(ours, peerpidfd=peerpidfd)
        process.close()
        process.close()
        assert process.dead()
    child.kill()
    child.wait()
    for _ in range(10):
        try:
            peer_process(ours, peerpidfd=peerpidfd).close()
        except Gone:
            continue
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
