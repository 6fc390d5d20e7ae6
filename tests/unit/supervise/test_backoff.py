from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.supervise.backoff import Backoff


def test_it_doubles_and_forgives():
    backoff = Backoff(first_s=1, longest_s=10, calm_s=60)
    assert [backoff.crashed(0) for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    assert (backoff.crashed(60), backoff.failures) == (1, 1)


@given(st.lists(st.floats(0, 1e6)))
def test_it_never_waits_less_than_first_nor_more_than_longest(runs):
    backoff = Backoff()
    assert all(1.0 <= backoff.crashed(ran) <= 60.0 for ran in runs)
