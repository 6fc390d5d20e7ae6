"""What is remembered of when models were used."""

from __future__ import annotations

from random import Random

from coordinator.core.arrivals import Arrivals
from coordinator.core.habits import KEPT, POOLED, RECENT
from coordinator.core.model import DeviceId, ModelId, Phase
from coordinator.core.policies.reuse import RECENCY, recency_share, reuse
from tests.helpers.stage import Stage

A, B, PLACE = ModelId("a"), ModelId("b"), DeviceId("n/0")


def use(arrivals: Arrivals, model: ModelId, start: float, end: float) -> None:
    arrivals.note(model, PLACE, start, active=True)
    arrivals.note(model, PLACE, end, active=False)


def test_gaps_lie_between_uses_in_seconds_and_in_turns() -> None:
    arrivals = Arrivals()
    for model, start in ((A, 0.0), (B, 10.0), (A, 20.0), (B, 40.0)):
        use(arrivals, model, start, start + 1.0)
    a, b = arrivals.of(A), arrivals.of(B)
    assert a is not None
    assert b is not None
    assert (list(a.gaps), list(a.turns), a.uses, a.until) == ([19.0], [2], 2, 21.0)
    assert list(b.gaps) == [29.0]
    assert list(arrivals.around(PLACE, 50.0).gaps) == [19.0, 29.0]
    assert arrivals.around(PLACE, 50.0).turn == 4


def test_a_use_again_with_nobody_between_says_nothing_about_leaving() -> None:
    arrivals = Arrivals()
    for start in (0.0, 10.0, 20.0):
        use(arrivals, A, start, start + 1.0)
    habit = arrivals.of(A)
    assert habit is not None
    assert (list(habit.gaps), habit.uses, habit.until) == ([], 3, 21.0)


def test_a_moment_between_gateway_and_engine_is_no_pause() -> None:
    arrivals = Arrivals()
    use(arrivals, A, 0.0, 1.0)
    use(arrivals, A, 1.01, 3.0)
    habit = arrivals.of(A)
    assert habit is not None
    assert (habit.uses, habit.until) == (1, 3.0)


def test_who_moves_counts_the_turns_of_its_new_place() -> None:
    arrivals = Arrivals()
    for n in range(10):
        use(arrivals, A if n % 2 else B, 10.0 * n, 10.0 * n + 1)
    arrivals.note(A, DeviceId("n/1"), 100.0, active=False)
    habit = arrivals.of(A)
    assert habit is not None
    assert (habit.place, habit.turn, list(habit.turns)) == ("n/1", 0, [])
    assert reuse(habit, arrivals.around(DeviceId("n/1"), 101.0), 1, 101.0, 0.5) <= 1.0


def test_memory_is_bounded() -> None:
    arrivals = Arrivals()
    for n in range(500):
        use(arrivals, ModelId(f"m{n % 2}"), 10.0 * n, 10.0 * n + 1)
        arrivals.restored(PLACE, 10.0 * n, 2)
    habit, around = arrivals.of(ModelId("m0")), arrivals.around(PLACE, 5000.0)
    assert habit is not None
    assert (len(habit.gaps), len(habit.turns), len(habit.began)) == (KEPT, KEPT, KEPT)
    assert (len(around.gaps), len(around.restores)) == (POOLED, POOLED)


def test_pace_is_the_time_from_one_restore_to_the_next() -> None:
    arrivals = Arrivals()
    use(arrivals, A, 0.0, 1.0)
    for n in range(200):
        use(arrivals, ModelId(f"m{n % 2}"), 10.0 * n, 10.0 * n + 1)
        if n % 2:
            arrivals.restored(PLACE, 10.0 * n, 2)
    seconds, turns = arrivals.around(PLACE, 2000.0).pace(2000.0)
    assert abs(seconds - 20.0) < 1.0
    assert abs(turns - 2.0) < 0.1


def test_the_scheduler_notes_uses_from_what_it_sees() -> None:
    """From a gateway's demand, from an engine's load; a model that is gone is forgotten."""
    stage = Stage()
    stage.engine("a", Phase.RESIDENT)
    stage.engine("b", Phase.RESIDENT)
    for engine, at in (("a", 110.0), ("b", 120.0), ("a", 130.0)):
        stage.now = at
        stage.load(engine, running=1)
        stage.now = at + 2.0
        stage.load(engine)
    habit = stage.scheduler._arrivals.of(A)
    assert habit is not None
    assert list(habit.gaps) == [18.0]
    stage.now = 140.0
    stage.demand("b", 1)
    other = stage.scheduler._arrivals.of(B)
    assert other is not None
    assert (other.active, list(other.gaps)) == (True, [18.0])
    stage.demand("b", 0)
    stage.gone("b")
    assert stage.scheduler._arrivals.of(B) is None


def foretold(uses: list[str]) -> Arrivals:
    """These models one after the other, each restored; ten seconds apart."""
    arrivals = Arrivals()
    for n, name in enumerate(uses):
        use(arrivals, ModelId(name), 10.0 * n, 10.0 * n + 1)
        arrivals.restored(PLACE, 10.0 * n, 3)
    return arrivals


def share(uses: list[str]) -> float:
    return recency_share(foretold(uses).around(PLACE, 10.0 * len(uses)))


def test_recency_counts_where_it_foretells_better_than_gaps() -> None:
    """A cycle is seen in the gaps, and recency calls just those likely that do not come; of sessions in no order gaps
    have seen nothing before."""
    rng = Random(1)
    sessions = [name for _ in range(20) for name in rng.sample("abcdefgh", 2) * rng.randint(2, 4)]
    assert share(list("abcdefgh") * 8) < 0.1
    assert share([]) < share(sessions)
    assert 0.55 < share(sessions) <= RECENCY[1]


def test_what_foretold_long_ago_is_forgotten() -> None:
    sessions = [name for n in range(20) for name in [*"abcdefgh"[n * 3 % 8 :][:2]] * 3]
    assert share(sessions + list("abcdefgh") * 40) < share(sessions + list("abcdefgh") * 4)


def test_only_the_last_used_are_weighed_and_nobody_who_left() -> None:
    arrivals = foretold([f"m{n}" for n in range(3 * RECENT)])
    around = arrivals.around(PLACE, 1000.0)
    assert list(around.recent) == [f"m{n}" for n in range(2 * RECENT, 3 * RECENT)]
    arrivals.forget(ModelId(f"m{2 * RECENT}"))
    arrivals.note(ModelId(f"m{3 * RECENT - 1}"), DeviceId("n/1"), 1000.0, active=False)
    assert list(around.recent) == [f"m{n}" for n in range(2 * RECENT + 1, 3 * RECENT - 1)]
