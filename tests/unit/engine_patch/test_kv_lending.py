"""A rank's KV cache as a view of the node daemon, which is played."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine_patch.kv_lending import KvLending
from engine_patch.region import Region
from native.link import DaemonUnavailable

CHUNK, BASE = 1 << 12, 1 << 30


class Hands:
    """`engine_patch.memory.Hands` as far as lending goes: chunks 0, 1 and 3 of the region are mapped."""

    def __init__(self) -> None:
        self.here = True
        self.away = False
        self.offered: list[tuple[int, ...]] = []
        self.client = self
        self.kv = object.__new__(Region)
        self.kv.base, self.kv.chunk, self.kv.device = BASE, CHUNK, "0"
        self.kv._mapped = {0: (70, 1), 1: (71, 2), 3: (73, 3)}

    @contextmanager
    def staying(self) -> Iterator[bool]:
        yield self.here

    def offer_view(self, device: str, chunks: tuple[int, ...]) -> int:
        if self.away:
            raise DaemonUnavailable("away")
        self.offered.append(chunks)
        return len(self.offered)


@pytest.fixture
def hands() -> Hands:
    return Hands()


def lending(hands: Hands) -> KvLending:
    return KvLending(hands)  # type: ignore[arg-type]


def test_one_view_for_as_long_as_its_pages_are_here(hands: Hands) -> None:
    one = lending(hands)
    for _ in range(2):
        loan = one.lend(0)
        assert loan is not None
        assert loan.lent.view == 1
    assert hands.offered == [(70, 71, 73)]
    hands.kv._mapped = {0: (80, 1), 1: (81, 2), 3: (83, 3)}
    loan = one.lend(0)
    assert loan is not None
    assert (loan.lent.view, hands.offered[1]) == (2, (80, 81, 83))


def test_a_view_that_is_lost_is_offered_anew_once(hands: Hands) -> None:
    one = lending(hands)
    one.lend(0)
    for _ in range(2):
        loan = one.lend(1)
        assert loan is not None
        assert loan.lent.view == 2


def test_nothing_while_pages_come_or_go_or_the_daemon_is_away(hands: Hands) -> None:
    one = lending(hands)
    hands.here = False
    assert one.lend(0) is None
    hands.here, hands.away = True, True
    assert one.lend(0) is None
    hands.away = False
    assert one.lend(0) is not None
    hands.kv._mapped = {}
    assert one.lend(0) is None


@pytest.mark.parametrize(
    ("address", "length", "place"),
    [
        (0, 10, 0),
        (CHUNK - 5, 10, CHUNK - 5),
        (3 * CHUNK + 7, CHUNK - 7, 2 * CHUNK + 7),
        (CHUNK, CHUNK + 1, None),
        (3 * CHUNK, CHUNK + 1, None),
        (2 * CHUNK, 1, None),
        (-1, 1, None),
        (0, 2 * CHUNK, 0),
    ],
)
def test_where_bytes_lie_in_the_view(hands: Hands, address: int, length: int, place: int | None) -> None:
    """Chunks end to end: what spans a hole is in no one piece."""
    assert hands.kv.place(BASE + address, length) == place
