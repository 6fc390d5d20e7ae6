"""The rate limit, in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.transports.bucket import Bucket
from transfer.transports.pace import SharedPace

STEPS = st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 3)), min_size=1, max_size=50)


@given(STEPS)
def test_never_more_than_rate_times_time_plus_burst_and_one_frame(steps: list[tuple[int, float]]):
    rate, burst = 1000.0, 2000.0
    bucket, now, sent = Bucket(rate, burst), 0.0, 0
    for size, rest in steps:
        now += rest
        now += bucket.take(size, now)
        sent += size
        assert sent <= rate * now + burst + 1e-3


@given(STEPS)
def test_liveness_a_sender_that_never_rests_gets_the_whole_rate(steps: list[tuple[int, float]]):
    bucket, now, sent = Bucket(1000.0, 1.0), 0.0, 0
    for size, _ in steps:
        now += bucket.take(size, now)
        sent += size
    assert now <= sent / 1000.0 + 1e-6


def test_a_rest_fills_the_burst_and_no_more():
    bucket = Bucket(100.0, 50.0)
    assert bucket.take(50, 1000.0) == 0
    assert bucket.take(50, 1000.0) == pytest.approx(0.5)


def test_another_rate_counts_from_now_on():
    bucket = Bucket(100.0, 100.0)
    bucket.take(200, 0.0)
    bucket.set_rate(1000.0, 0.0)
    assert bucket.take(0, 0.0) == pytest.approx(0.1)


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (1, 0), (-1, 1)])
def test_a_limit_that_lets_nothing_through_is_refused(rate: float, burst: float):
    with pytest.raises(ValueError, match="nothing through"):
        Bucket(rate, burst)
    with pytest.raises(ValueError, match="nothing through"):
        Bucket(1, 1).set_rate(0, 0)


def test_a_limit_that_is_lifted_frees_those_who_wait():
    rates = iter([1.0, 0.0])
    SharedPace(lambda: next(rates), clock=lambda: 0.0).wait(1000)


def test_an_ended_pace_holds_nobody():
    pace = SharedPace(lambda: 1.0, clock=lambda: 0.0)
    pace.end()
    pace.wait(1 << 40)
