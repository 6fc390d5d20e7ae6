"""When an engine asks the node daemon, which is played, whether others have its weights."""

from __future__ import annotations

import pytest

from engine_patch.common_pages import CommonPages
from native.link import DaemonUnavailable

DIGEST = "content"


class Played:
    """The daemon's client, the bus and the region, as far as the question goes."""

    shares = True
    device = "0"

    def __init__(self) -> None:
        self.others = False
        self.away = False
        self.asked = 0

    def share_wanted(self, device: str, digest: str, timeout_s: float) -> bool:
        assert (device, digest) == ("0", DIGEST)
        self.asked += 1
        if self.away:
            raise DaemonUnavailable("away")
        return self.others


@pytest.fixture
def played() -> Played:
    return Played()


def pages(played: Played, *, allowed: bool = True) -> CommonPages:
    return CommonPages(played, played, played, allowed=allowed)  # type: ignore[arg-type]


def test_who_has_not_restored_yet_asks_when_it_leaves(played: Played) -> None:
    mine = pages(played)
    assert not mine.unproven(DIGEST)
    played.others = True
    assert mine.unproven(DIGEST)
    assert played.asked == 2


@pytest.mark.parametrize("others", [True, False])
def test_what_was_asked_in_a_restore_is_not_asked_when_it_leaves(played: Played, *, others: bool) -> None:
    mine = pages(played)
    for asked in (1, 2):  # each life of the pages has an answer of its own
        played.others = others
        mine.ask(DIGEST)
        played.others = not others
        assert mine.unproven(DIGEST) is others
        assert played.asked == asked


def test_an_answer_is_good_for_one_life_of_the_pages(played: Played) -> None:
    mine = pages(played)
    mine.ask(DIGEST)
    assert not mine.unproven(DIGEST)
    played.others = True
    assert mine.unproven(DIGEST)


@pytest.mark.parametrize("same", [True, False])
def test_what_is_known_is_not_asked(played: Played, *, same: bool) -> None:
    mine = pages(played)
    played.others = True
    mine.ask(DIGEST)
    mine.prove(same)
    mine.ask(DIGEST)
    assert not mine.unproven(DIGEST)
    assert played.asked == 1


def test_a_daemon_that_is_away_and_an_engine_that_may_not_share(played: Played) -> None:
    mine = pages(played, allowed=False)
    mine.ask(DIGEST)
    assert (mine.unproven(DIGEST), played.asked) == (False, 0)
    played.others = played.away = True
    mine = pages(played)
    mine.ask(DIGEST)
    assert not mine.unproven(DIGEST)
