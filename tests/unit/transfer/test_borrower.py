"""What is mapped of others' memory, and how it is let go of; the daemon is a stand-in with real descriptors."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from native.client import Chunk, View
from native.link import DaemonRefused, DaemonUnavailable
from native.protocol import Code
from tests.helpers.played_daemon import VIEW, played_daemon
from transfer.errors import PeerLost, TransferError
from transfer.netloader.borrower import Borrower
from transfer.netloader.wire import Lent
from transfer.transports.deadline import Deadline

CHUNK = 1 << 16


class Daemon:
    """A `native.client.Client` that has one view of two chunks, and one master."""

    def __init__(self) -> None:
        self.handle = 0
        self.away = False
        self.closed: list[object] = []

    def sibling(self) -> Daemon:
        return self

    def _chunk(self, number: int) -> Chunk:
        descriptor = os.memfd_create("vnpu-test-chunk")
        os.pwrite(descriptor, bytes([number]) * CHUNK, 0)
        return Chunk(number, descriptor, CHUNK)

    def open_view(self, view: int, timeout_s: float) -> View:
        if view != 7:
            raise DaemonRefused(Code.NOT_FOUND, "no such view")
        if self.handle:
            return View(view, (Chunk(1, -1, CHUNK, self.handle),))
        return View(view, (self._chunk(1), self._chunk(2)))

    def open_master(self, digest: str, timeout_s: float) -> tuple[int, int] | None:
        return (self._chunk(3).fd, CHUNK) if digest == "m" else None

    def close_view(self, view: int, timeout_s: float) -> None:
        if self.away:
            raise DaemonUnavailable("away")
        self.closed.append(view)

    def release_master(self, digest: str, timeout_s: float) -> None:
        self.closed.append(digest)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    yield Daemon()
    assert not [one for one in Path("/proc/self/fd").iterdir() if "memfd:vnpu-test-chunk" in _target(one)]


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # that of the listing itself
        return ""


@pytest.fixture
def borrower(daemon: Daemon) -> Borrower:
    return Borrower(daemon)  # type: ignore[arg-type]


def copied(window: object, place: int, length: int) -> bytes:
    target = ctypes.create_string_buffer(length)
    window.take(place, ctypes.addressof(target), length, Deadline.after(5))  # type: ignore[attr-defined]
    return bytes(target.raw)


def test_a_view_is_mapped_chunk_behind_chunk_and_closed_at_the_daemon_once(daemon: Daemon, borrower: Borrower):
    window = borrower.open(Lent(view=7))
    assert copied(window, CHUNK - 2, 4) == b"\1\1\2\2"
    window.close()
    window.close()
    assert daemon.closed == [7]
    borrower.open(Lent(view=7)).close()


def test_it_is_let_go_of_when_the_owner_wants_it_back(daemon: Daemon, borrower: Borrower):
    window = borrower.open(Lent(view=7))
    borrower.let_go(99)
    borrower.let_go(7)
    assert daemon.closed == [7]
    with pytest.raises(PeerLost):
        copied(window, 0, 1)
    borrower.let_go(7)


def test_a_master_is_released_with_its_last_window(daemon: Daemon, borrower: Borrower):
    first, second = borrower.open(Lent(master="m")), borrower.open(Lent(master="m"))
    first.close()
    assert daemon.closed == []
    assert copied(second, 5, 2) == b"\3\3"
    second.close()
    assert daemon.closed == ["m"]


def test_what_cannot_be_mapped_is_said_and_leaves_nothing(daemon: Daemon, borrower: Borrower):
    with pytest.raises(TransferError, match="no such view"):
        borrower.open(Lent(view=8))
    with pytest.raises(TransferError, match="no master"):
        borrower.open(Lent(master="other"))
    daemon.handle = 5
    with pytest.raises(TransferError, match="by handle"):
        borrower.open(Lent(view=7))
    assert daemon.closed == [7]


def test_a_view_is_not_mapped_twice(borrower: Borrower):
    window = borrower.open(Lent(view=7))
    with pytest.raises(TransferError, match="already"):
        borrower.open(Lent(view=7))
    window.close()


def test_a_daemon_that_is_away_does_not_hold_up_the_end(daemon: Daemon, borrower: Borrower):
    window = borrower.open(Lent(view=7))
    daemon.away = True
    window.close()


async def test_a_view_is_closed_while_the_process_waits_for_the_daemon(tmp_path: Path):
    """For pages, say, that only come when that very view is closed: who does not close it in time is killed."""
    async with played_daemon(tmp_path) as played:
        client = played.client()
        borrower = Borrower(client)
        window = await asyncio.to_thread(borrower.open, Lent(view=VIEW))
        waiting = asyncio.create_task(asyncio.to_thread(client.await_open, "0", 60.0))
        await played.waiting.wait()
        await asyncio.to_thread(borrower.let_go, VIEW)
        assert played.closed == [VIEW]
        assert not window.is_open
        for one in (client, borrower._client):
            await asyncio.to_thread(one.close)
        with pytest.raises(DaemonUnavailable):
            await waiting
