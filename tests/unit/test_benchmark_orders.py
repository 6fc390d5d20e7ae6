"""In which order the engines of a benchmark are asked."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.async_runner.asking import Orders


@given(st.integers(2, 8), st.integers(1, 20), st.integers(0, 99))
def test_of_any_two_each_is_asked_first_as_often(engines: int, pairs: int, seed: int) -> None:
    orders = Orders(seed)
    rounds = [orders.next(range(engines)) for _ in range(2 * pairs)]
    assert all(sorted(one) == list(range(engines)) for one in rounds)
    for a, b in combinations(range(engines), 2):
        assert sum(one.index(a) < one.index(b) for one in rounds) == pairs


def test_orders_are_drawn_and_the_same_each_time() -> None:
    def drawn() -> list[list[str]]:
        orders = Orders()
        return [orders.next("abcde") for _ in range(20)]

    assert drawn() == drawn()
    assert len({tuple(one) for one in drawn()}) > 10
