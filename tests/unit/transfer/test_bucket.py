"""The rate limit, in virtual time."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.transports.bucket import Bucket
from transfer.transports.pace import BOOKED_S, BURST_S, SharedPace, Slot, fitting

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


@given(STEPS)
def test_what_is_booked_keeps_to_the_limit_at_every_point(steps: list[tuple[int, float]]):
    """Bytes go at the rate from when they are due, or at once where that has passed."""
    rate, burst = 1000.0, 2000.0
    bucket, now, before = Bucket(rate, burst), 0.0, 0
    for size, rest in steps:
        now += rest
        due = now + bucket.book(size, now)
        assert due >= now - burst / rate - 1e-9
        for part in (0, size / 2, size):
            at = max(now, due + part / rate)
            assert before + part <= rate * at + burst + 1e-3
        before += size
        now = max(now, due + size / rate)


@given(STEPS)
def test_liveness_who_books_one_after_the_other_gets_the_whole_rate(steps: list[tuple[int, float]]):
    """However late it comes back for the next, as long as a burst covers it."""
    rate, late = 1000.0, 0.5
    bucket, now, sent = Bucket(rate, rate * late), 0.0, 0
    for size, _ in steps:
        now = max(now, now + bucket.book(size, now) + size / rate)
        sent += size
        assert now <= sent / rate + 1e-6
        now += min(late, size / rate) / 2
    assert now <= sent / rate + late


@pytest.mark.parametrize(
    ("sizes", "most", "count"),
    [([3, 3, 3], 6, 2), ([3, 3, 3], 5, 1), ([3], 0.5, 1), ([], 5, 0), ([1, 0, 1], 9, 3)],
)
def test_a_slot_has_room_for_one_piece_at_least(sizes: list[int], most: float, count: int):
    assert fitting(sizes, most) == count


def test_two_who_book_come_one_after_the_other():
    pace = SharedPace(lambda: 1000.0, clock=lambda: 0.0)
    burst = 1000.0 * BURST_S
    one, other = pace.book([30, 30]), pace.book([10, 10, 10, 10, 10, 10])
    assert (one.pieces, one.delay_s, one.rate) == (1, pytest.approx(-burst / 1000), 1000)
    assert (other.pieces, other.delay_s) == (5, pytest.approx(one.delay_s + 0.03))


def test_without_a_limit_all_goes_at_once():
    assert SharedPace(lambda: 0.0).book([1, 2, 3]) == Slot(3)
    ended = SharedPace(lambda: 1.0)
    ended.end()
    assert ended.book([1 << 40, 1]) == Slot(2)


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


def rates(*each: float) -> Callable[[], float]:
    """What a limit is each time that it is asked for; the last for ever."""
    left = list(each)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_a_booking_that_waits_is_freed_by_a_limit_that_is_lifted():
    pace = SharedPace(rates(1.0, 1.0, 0.0), clock=lambda: 0.0)
    assert pace.book([1000]).pieces == 1
    assert pace.book([7, 8]) == Slot(2)  # and not in a thousand seconds


def test_a_booking_that_waits_is_booked_anew_under_another_limit():
    pace = SharedPace(rates(1.0, 1.0, 1e9), clock=lambda: 0.0)
    pace.book([1000])
    assert pace.book([7, 8]) == Slot(2, pytest.approx(-BURST_S), 1e9)


def test_a_booking_that_waits_is_freed_by_the_end():
    pace = SharedPace(lambda: 1.0, clock=lambda: 0.0)
    pace.book([1000])
    threading.Timer(0.01, pace.end).start()
    assert pace.book([7, 8]) == Slot(2)


def test_a_booking_returns_when_its_turn_is_near():
    times = itertools.count(0.0, 0.25)  # it is that much later whenever somebody looks
    pace = SharedPace(lambda: 1000.0, clock=lambda: next(times))
    pace.book([1020])
    assert pace.book([10]).delay_s <= BOOKED_S
    assert next(times) >= 1.0


def test_only_without_a_limit_it_is_free():
    assert SharedPace(lambda: 0.0).free
    assert not SharedPace(lambda: 1.0).free
