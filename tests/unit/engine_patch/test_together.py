"""Which pages an engine lets others lie in, and which it takes for its own: the memory hands are played."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from engine_patch.region import layout
from engine_patch.together import SharedStart
from native.link import DaemonUnavailable

HERE = "n/0"


class Played:
    """A resident engine that has answered requests, alone on its device; its model lies in the chunks 0 and 2."""

    def __init__(self) -> None:
        self.weights = SimpleNamespace(device=HERE, base=4096, touched=lambda live: (0, 2))
        self.partners = SimpleNamespace(alone=True)
        self.digest, self.used, self.here, self.away = "content:here", True, True, False
        self.common = self
        self.held: list[tuple[Any, ...]] = []

    @contextmanager
    def staying(self) -> Iterator[bool]:
        yield self.here

    def live(self, region: object) -> list[tuple[int, int]]:
        return [(0, 8), (64, 16)]

    def unchanged(self) -> bool:
        return True

    def offer_now(self, digest: str, same: object) -> bool:
        return digest == self.digest

    def hold(self, *asked: Any) -> bool:
        if self.away:
            raise DaemonUnavailable("away")
        self.held.append(asked[:3])
        return True


@pytest.fixture
def played() -> Played:
    return Played()


def start(played: Played) -> SharedStart:
    hands: Any = played
    return SharedStart(hands)


def test_a_resident_engine_offers_its_pages_on_its_own_device(played: Played) -> None:
    assert start(played).offer(HERE) == "content:here"
    assert start(played).offer("n/1") == ""


@pytest.mark.parametrize("what", ["here", "used", "alone"])
def test_nothing_is_offered(played: Played, what: str) -> None:
    setattr(played.partners if what == "alone" else played, what, False)
    assert start(played).offer(HERE) == ""


def test_pages_of_the_same_layout_are_held(played: Played) -> None:
    digest = f"sha256-tree:content:{layout((0, 2))}"
    assert start(played).hold(digest)
    assert played.held == [(digest, (0, 2), [(4096, 8), (4160, 16)])]


def test_pages_of_another_layout_are_not(played: Played) -> None:
    """As many chunks, at other places: the same bytes would be other weights there."""
    assert not start(played).hold(f"sha256-tree:content:{layout((0, 1))}")
    assert played.held == []


def test_a_daemon_that_is_away_costs_the_sharing_alone(played: Played) -> None:
    played.away = True
    assert not start(played).hold(f"content:{layout((0, 2))}")
