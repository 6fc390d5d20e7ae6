"""What a process keeps for a restarted daemon, and when it gives it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pytest

from native import protocol
from native.kept import Kept
from native.protocol import MAX_FDS, Code, Done, HandBackChunks, HandBackMaster, Refused


class Daemon:
    """Notes what it is sent, with the files that the descriptors name."""

    def __init__(self, breaks_after: int = 1000, refuses: bool = False) -> None:
        self.got: list[protocol.Request] = []
        self.left = breaks_after
        self.refuses = refuses

    def send(self, request: protocol.Request, beside: Sequence[int]) -> protocol.Reply:
        if not self.left:
            raise ConnectionResetError
        self.left -= 1
        assert all(os.fstat(descriptor) for descriptor in beside)
        assert len(beside) == (len(request.chunks) if isinstance(request, HandBackChunks) else 1)
        self.got.append(request)
        return Refused(Code.BAD_REQUEST, "no") if self.refuses else Done()


@pytest.fixture
def kept() -> Iterator[Kept]:
    """Of a process that has met one daemon and holds two chunks and a master."""
    before = sum(1 for _ in os.scandir("/proc/self/fd"))
    kept = Kept()
    kept.hand_back(5, Daemon().send)
    for chunk in (7, 8):
        kept.put_chunk("0", chunk, os.open(os.devnull, os.O_RDONLY))
    kept.put_master("digest", os.open(os.devnull, os.O_RDONLY))
    yield kept
    kept.close()
    kept.close()
    assert sum(1 for _ in os.scandir("/proc/self/fd")) == before


def test_a_new_daemon_gets_everything_once(kept: Kept) -> None:
    same, new = Daemon(), Daemon()
    kept.hand_back(5, same.send)
    assert (same.got, kept.generation) == ([], 5)
    for _ in range(2):
        kept.hand_back(6, new.send)
        assert kept.generation == 6
    assert new.got == [HandBackMaster("digest"), HandBackChunks("0", (7, 8))]


def test_what_was_let_go_of_is_not_handed_back(kept: Kept) -> None:
    kept.drop_chunks("0", [7, 7, 99])
    kept.drop_chunks("another", [7])
    kept.drop_master("digest")
    kept.drop_master("digest")
    new = Daemon()
    kept.hand_back(6, new.send)
    assert new.got == [HandBackChunks("0", (8,))]


def test_a_broken_connection_goes_on_where_it_broke(kept: Kept) -> None:
    new = Daemon(breaks_after=1)
    with pytest.raises(ConnectionResetError):
        kept.hand_back(6, new.send)
    new.left = 1
    kept.hand_back(6, new.send)
    assert new.got == [HandBackMaster("digest"), HandBackChunks("0", (7, 8))]


def test_what_is_refused_is_not_offered_to_that_daemon_again(kept: Kept) -> None:
    """Each refusal may end the connection: offering it again each time would never let the process through."""
    new = Daemon(breaks_after=1, refuses=True)
    with pytest.raises(ConnectionResetError):
        kept.hand_back(6, new.send)
    new.left = 1
    kept.hand_back(6, new.send)
    assert len(new.got) == 2
    newer = Daemon()
    kept.hand_back(7, newer.send)
    assert len(newer.got) == 2


def test_more_than_go_in_a_frame(kept: Kept) -> None:
    for chunk in range(100, 100 + MAX_FDS):
        kept.put_chunk("1", chunk, os.open(os.devnull, os.O_RDONLY))
    kept.put_chunk("1", 5, os.open(os.devnull, os.O_RDONLY))
    new = Daemon()
    kept.hand_back(6, new.send)
    assert [len(request.chunks) for request in new.got if isinstance(request, HandBackChunks)] == [2, MAX_FDS, 1]
