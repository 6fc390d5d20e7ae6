"""What makes a benchmark drop a pair, and apart from what it keeps them."""

from __future__ import annotations

import os

import pytest

from benchmarks.calm import BUSY, OWN, Calm, Moment, seconds
from benchmarks.weight_stream.__main__ import by_caches, dropped
from benchmarks.weight_stream.bench import Samples, Took

BEFORE = Moment(memcpy=1e-10, at=100.0, busy=50.0, own=20.0, one_cache=True)
CALM = Moment(memcpy=1.1e-10, at=101.0, busy=51.5, own=21.4, one_cache=True)


def test_a_calm_pair_is_kept() -> None:
    assert BEFORE.foreign(CALM) == pytest.approx(0.1)
    assert BEFORE.fault(CALM) == ""


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (CALM._replace(memcpy=1.2e-10), "memcpy drifted"),
        (CALM._replace(one_cache=False), "a processor was moved"),
        (CALM._replace(busy=51.6), "others computed"),
        (CALM._replace(own=21.3), "others computed"),
    ],
)
def test_why_a_pair_is_dropped(after: Moment, why: str) -> None:
    assert BEFORE.fault(after) == why


def test_ratios_of_both_places_are_kept_apart_and_together() -> None:
    samples = Samples()
    two = BEFORE._replace(one_cache=False), CALM._replace(one_cache=False)
    samples.add(BEFORE, CALM, Took(1.0, 2.0, 0.5, 0.2), judged=True)
    samples.add(*two, Took(3.0, 2.0, 0.25, 0.1), judged=True)
    samples.add(BEFORE, two[1], Took(9.0, 9.0, 1.0, 1.0), judged=True)
    assert (samples.tcp, samples.local, samples.shared) == ([0.5, 1.5], [4.0, 8.0], [10.0, 20.0])
    assert (samples.one_cache, samples.two_caches) == ([4.0], [8.0])
    assert {name: each.median for name, each in by_caches(samples).items()} == {
        "local_copy_over_tcp_one_cache": 4.0,
        "local_copy_over_tcp_two_caches": 8.0,
    }
    assert dropped(samples) == "one to one: pairs dropped: 1 because a processor was moved"


def test_what_is_not_judged_is_not_dropped() -> None:
    samples = Samples()
    samples.add(BEFORE, CALM._replace(busy=60.0), Took(1.0, 1.0, 1.0, 1.0), judged=False)
    assert len(samples.tcp) == 1
    assert dropped(samples) == "one to one: pairs dropped: none"
    assert list(by_caches(samples)) == ["local_copy_over_tcp_one_cache"]


def test_processor_seconds_are_read_from_the_right_columns() -> None:
    assert seconds("cpu  1 2 4 1000 1000 8 16 32 1000 1000", BUSY, 100) == 0.63
    assert seconds(" S 1 2 3 4 5 6 7 8 9 10 300 50 7 7", OWN, 100) == 3.5


def test_a_look_at_this_machine() -> None:
    allowed = os.sched_getaffinity(0)
    calm = Calm([os.getpid()])
    first = calm.look(1e-10)
    assert sum(n * n for n in range(300_000))
    later = calm.look(1e-10)
    assert os.sched_getaffinity(0) == allowed
    assert later.own >= first.own > 0
    assert later.busy >= first.busy >= first.own
    assert later.at > first.at


@pytest.mark.parametrize(("own", "other", "one_cache"), [(0.62, 1.0, True), (0.29, 1.0, False)])
def test_where_the_processors_lie(own: float, other: float, one_cache: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor reads its own in `own` and the other's in `other`."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 5})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: None)
    calm = Calm([os.getpid()])
    monkeypatch.setattr(calm, "_seconds", lambda writer, reader: own if writer == reader else other)
    assert calm.look(1e-10).one_cache is one_cache
