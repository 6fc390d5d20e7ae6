"""Who has foretold a use better, a model's gaps or plain recency: what counts for it, and what does not."""

from __future__ import annotations

from collections import deque

import pytest

from coordinator.core.habits import Habit, Neighbourhood
from coordinator.core.model import DeviceId, ModelId
from coordinator.core.policies.reuse import FORGETTING, RECENCY, recency_share, reuse, weigh

PLACE = DeviceId("n/0")
REGULAR, LATEST, LAST, NEW = (ModelId(name) for name in ("regular", "latest", "last", "new"))
NOW, TURN = 400.0, 160


def habit(*, ago_s: float, ago_turns: int, gap_s: float, gap_turns: int) -> Habit:
    """Ten uses at even distances, the last one so long ago."""
    return Habit(
        0.0,
        NOW - ago_s,
        PLACE,
        uses=10,
        turn=TURN - ago_turns,
        gaps=deque([gap_s] * 9),
        turns=deque([gap_turns] * 9),
        began=deque(n * gap_s for n in range(10)),
    )


def neighbourhood(restores: int = 40, residents: int = 2, *, last: Habit | None = None) -> Neighbourhood:
    """`REGULAR` is due by its gaps and was used long ago, `LATEST` was used just now and comes seldom."""
    return Neighbourhood(
        PLACE,
        0.0,
        turn=TURN,
        last=LAST,
        restores=deque((10.0 * n, 4 * n) for n in range(restores)),
        residents=residents,
        recent={
            REGULAR: habit(ago_s=38.0, ago_turns=15, gap_s=40.0, gap_turns=16),
            LATEST: habit(ago_s=2.0, ago_turns=1, gap_s=390.0, gap_turns=150),
            LAST: last or habit(ago_s=0.0, ago_turns=0, gap_s=20.0, gap_turns=8),
        },
    )


def weighed(around: Neighbourhood, model: ModelId, odds: float = 0.0) -> float:
    around.odds = odds
    weigh(around, model, NOW)
    return around.odds


def test_the_odds_move_to_who_called_the_one_that_came() -> None:
    assert weighed(neighbourhood(), REGULAR) < -0.1
    assert weighed(neighbourhood(), LATEST) > 0.1


def test_the_past_fades_and_what_was_learned_counts() -> None:
    fresh = weighed(neighbourhood(), LATEST)
    assert weighed(neighbourhood(), LATEST, 2.0) == pytest.approx(2.0 * FORGETTING + fresh)
    least, most = RECENCY
    shares = []
    for odds in (-1e9, 0.0, 1e9):
        around = neighbourhood()
        around.odds = odds
        shares.append(recency_share(around))
        regular, latest = (reuse(around.recent[model], around, 2, NOW, 0.5) for model in (REGULAR, LATEST))
        assert (latest > regular) == (odds > 0)
    assert shares == [pytest.approx(least), pytest.approx((least + most) / 2), pytest.approx(most)]


def test_who_was_used_last_is_no_candidate() -> None:
    """The use goes over to another one: nobody has to call that the same one stays."""
    soon, never = (habit(ago_s=0.0, ago_turns=0, gap_s=gap, gap_turns=int(gap)) for gap in (1.0, 390.0))
    assert weighed(neighbourhood(last=soon), REGULAR) == weighed(neighbourhood(last=never), REGULAR)
    assert weighed(neighbourhood(), LAST, 1.5) == 1.5


def test_nothing_is_learned_of_who_was_never_here_nor_where_only_one_could_come() -> None:
    assert weighed(neighbourhood(), NEW, 1.5) == 1.5
    alone = neighbourhood()
    del alone.recent[LATEST]
    assert weighed(alone, REGULAR, 1.5) == 1.5


@pytest.mark.parametrize(("restores", "learns"), [(0, False), (3, False), (4, True)])
def test_nothing_is_learned_before_it_is_known_how_long_a_stay_is(restores: int, learns: bool) -> None:
    assert (weighed(neighbourhood(restores), LATEST, 1.5) != 1.5) == learns


def test_a_stay_lasts_as_many_restores_as_there_are_residents() -> None:
    assert weighed(neighbourhood(20, 1), LATEST) == pytest.approx(weighed(neighbourhood(40, 2), LATEST))
    assert weighed(neighbourhood(40, 1), LATEST) != pytest.approx(weighed(neighbourhood(40, 2), LATEST), rel=0.01)
