"""The optimum against brute force, and the bound against the optimum."""

from __future__ import annotations

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.simulate.optimum import MOST_MODELS, Problem, bound, exact, furthest_first, optimum

MODELS = "abcde"

problems = st.builds(
    lambda order, costs, sizes, room: Problem(
        tuple(order),
        dict(zip(MODELS, costs, strict=True)),
        {model: {"d": size} for model, size in zip(MODELS, sizes, strict=True)},
        {"d": max(room, *sizes)},
    ),
    st.lists(st.sampled_from(MODELS), min_size=1, max_size=14),
    st.lists(st.floats(0.1, 5.0), min_size=5, max_size=5),
    st.lists(st.integers(1, 9), min_size=5, max_size=5),
    st.integers(5, 30),
)


def brute(problem: Problem) -> float:
    """Every subset at every step, with nothing thought about."""

    @cache
    def least(at: int, held: frozenset[str]) -> float:
        if at == len(problem.order):
            return 0.0
        model = problem.order[at]
        paid = 0.0 if model in held else problem.cost[model]
        best = float("inf")
        others = sorted(held - {model})
        for mask in range(1 << len(others)):
            kept = frozenset(other for n, other in enumerate(others) if mask >> n & 1) | {model}
            if problem.fits(tuple(kept)):
                best = min(best, least(at + 1, kept))
        return paid + best

    return least(0, frozenset())


@given(problems)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_exact_is_what_brute_force_finds(problem: Problem) -> None:
    assert abs(exact(problem) - brute(problem)) < 1e-9


@given(problems)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_the_bound_never_exceeds_the_optimum_and_a_schedule_never_undercuts_it(problem: Problem) -> None:
    best = exact(problem)
    assert bound(problem) <= best + 1e-9
    assert furthest_first(problem) >= best - 1e-9


def test_a_cycle_that_does_not_fit() -> None:
    """Three of one size in a room for two: after the first restores every other request is a restore at best."""
    order = tuple("abc" * 20)
    problem = Problem(order, dict.fromkeys("abc", 1.0), {m: {"d": 1} for m in "abc"}, {"d": 2})
    assert exact(problem) == 3 + 57 // 2 + 57 % 2 - (57 % 2)
    assert bound(problem) > 0.9 * exact(problem)


def test_devices_count_separately_and_a_group_takes_room_on_both() -> None:
    bytes_ = {"x": {"d": 1}, "y": {"e": 1}, "g": {"d": 1, "e": 1}}
    problem = Problem(tuple("xygxy"), {"x": 1.0, "y": 1.0, "g": 5.0}, bytes_, {"d": 1, "e": 1})
    assert exact(problem) == 9.0
    assert bound(problem) <= 9.0


def test_many_models_get_a_bound() -> None:
    names = [f"m{n}" for n in range(MOST_MODELS + 1)]
    problem = Problem(tuple(names * 3), dict.fromkeys(names, 1.0), {m: {"d": 1} for m in names}, {"d": 3})
    found = optimum(problem)
    assert not found.exact
    assert found.seconds >= len(names)
    assert optimum(Problem(tuple("aab"), {"a": 1.0, "b": 1.0}, {"a": {"d": 1}, "b": {"d": 1}}, {"d": 2})).exact
