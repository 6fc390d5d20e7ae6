"""A rank's KV cache as a view of the node daemon, which is played."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from engine_patch import memory
from engine_patch.kv_lending import KvLending
from engine_patch.lent_view import LentView
from engine_patch.region import Region
from native.client import Chunk
from native.link import DaemonUnavailable
from native.protocol import Kind

CHUNK, BASE = 1 << 12, 1 << 30


class Daemon:
    """Gives chunks 70, 71, … and views 1, 2, …"""

    def __init__(self) -> None:
        self.away = False
        self.offered: list[tuple[int, ...]] = []
        self.kept = SimpleNamespace(drop_chunks=lambda *_: None, generation=1)

    def map(self, device: str, kind: Kind, count: int, *_: object, **__: object) -> tuple[Chunk, ...]:
        return tuple(Chunk(70 + at, -1, CHUNK) for at in range(count))

    def unmap(self, *_: object, **__: object) -> None:
        """Takes back everything."""

    def offer_view(self, device: str, chunks: tuple[int, ...]) -> int:
        if self.away:
            raise DaemonUnavailable("away")
        self.offered.append(chunks)
        return len(self.offered)


class Driver:
    sharing = "descriptor"

    def reserve(self, size: int, hint: int) -> int:
        return BASE

    def import_handle(self, shareable: int, size: int) -> int:
        return 1

    def map_many(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Nothing is touched there."""

    def unmap_many(self, addresses: Sequence[int]) -> None:
        """Nothing was there."""

    def destroy(self, handle: int) -> None:
        """It was none."""


class Hands:
    """`engine_patch.memory.Hands` as far as lending goes: chunks 0, 1 and 3 of the region are mapped."""

    def __init__(self) -> None:
        self.here = True
        self.client = Daemon()
        driver: Any = Driver()
        client: Any = self.client
        self.kv = Region(driver, client, "0", Kind.KV, CHUNK, BASE, 4 * CHUNK)
        self.map()

    def map(self) -> None:
        self.kv.map((0, 1, 3), 1.0)

    def unmap(self) -> None:
        self.kv.drop(self.kv.indices, 1.0)

    @contextmanager
    def staying(self) -> Iterator[bool]:
        yield self.here


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
    assert hands.client.offered == [(70, 71, 72)]


def test_another_view_where_the_same_chunks_went_and_came_again(hands: Hands) -> None:
    one = lending(hands)
    one.lend(0)
    hands.unmap()
    hands.map()
    loan = one.lend(0)
    assert loan is not None
    assert (loan.lent.view, hands.client.offered) == (2, [(70, 71, 72)] * 2)


def test_another_view_from_another_daemon(hands: Hands) -> None:
    """It was told of none. Its readers need not find out first."""
    one = lending(hands)
    one.lend(0)
    hands.client.kept.generation += 1
    for _ in range(2):
        loan = one.lend(0)
        assert loan is not None
        assert loan.lent.view == 2


def test_a_view_that_is_lost_is_offered_anew_once(hands: Hands) -> None:
    one = lending(hands)
    one.lend(0)
    for _ in range(2):
        loan = one.lend(1)
        assert loan is not None
        assert loan.lent.view == 2


def test_weights_without_a_master_are_lent_in_the_same_way(hands: Hands) -> None:
    """Another view after each switch, and from each daemon; none while a restore is under way."""
    one: Any = object.__new__(memory.Hands)
    one._turn, one.digest, one.resident, one._restoring = threading.Lock(), "digest", True, None
    one._master, one.common = SimpleNamespace(memory=None), SimpleNamespace(joined="")
    one.weights, one._view = hands.kv, LentView(hands.client, hands.kv)  # type: ignore[arg-type]
    views = [one.lend().lent.view, one.lend().lent.view]
    hands.unmap()
    hands.map()
    one._restoring = SimpleNamespace(done=False)
    assert one.lend() is None
    one._restoring.done = True
    views.append(one.lend().lent.view)
    hands.client.kept.generation += 1
    views.append(one.lend().lent.view)
    assert views == [1, 1, 2, 3]


def test_nothing_while_pages_come_or_go_or_the_daemon_is_away(hands: Hands) -> None:
    one = lending(hands)
    hands.here = False
    assert one.lend(0) is None
    hands.here, hands.client.away = True, True
    assert one.lend(0) is None
    hands.client.away = False
    assert one.lend(0) is not None
    hands.unmap()
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
