"""Who fetches from whom, and who fetches what."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.netloader.plan import STRIPES, Peer, sources, spares
from transfer.netloader.work import Run, Work

NAMES = "ABCDEFGHIJ"


def whole(name: str, load: int = 0) -> Peer:
    return Peer(name=name, host="h", port=1, load=load)


def starter(name: str, at: float) -> Peer:
    return Peer(name=name, host="h", port=1, ticket=(at, name), whole=False)


PEERS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.booleans(), st.integers(0, 5)), max_size=10, unique_by=lambda one: one[0]
).map(lambda rows: [whole(n, int(at)) if w else starter(n, float(at)) for n, w, at in rows])


def names(peers: list[Peer]) -> list[str]:
    return [peer.name for peer in peers]


def test_one_source_and_starters_are_a_chain():
    peers = [whole("A"), *(starter(name, n) for n, name in enumerate("BCDE", 1))]
    assert [names(sources(me, peers)) for me in peers[1:]] == [["A"], ["B"], ["C"], ["D"]]


def test_memory_that_can_be_mapped_comes_before_everything_and_takes_no_place_in_the_chain():
    near = Peer(name="N", host="h", port=1, load=9, machine="here")
    peers = [whole("A"), near, starter("B", 1), starter("C", 2), starter("D", 3)]
    peers[3] = Peer(name="C", host="h", port=1, ticket=(2, "C"), whole=False, machine="here")
    assert names(sources(peers[3], peers)) == ["N"]
    assert names(sources(peers[4], peers)) == ["B"]
    assert names(sources(peers[3], peers, frozenset("N"))) == ["B"]
    unlike = Peer(name="E", host="h", port=1, ticket=(9, "E"), whole=False, machine="there")
    assert names(sources(unlike, [*peers, unlike])) != ["N"]
    nowhere = [Peer(name=n, host="h", port=1) for n in "AB"]
    assert names(sources(starter("F", 1), nowhere)) == ["A", "B"]


def test_several_sources_are_striped_by_the_first_and_the_next_joins_the_chain():
    peers = [whole("A"), whole("B"), starter("C", 1), starter("D", 2)]
    assert names(sources(peers[2], peers)) == ["A", "B"]
    assert names(sources(peers[3], peers)) == ["C"]


def test_never_more_than_so_many_at_once():
    peers = [*(whole(name) for name in NAMES[:6]), starter("Z", 1)]
    assert len(sources(peers[-1], peers)) == STRIPES


def test_the_least_loaded_goes_first():
    peers = [whole("A", load=7), whole("B", load=1), starter("C", 1)]
    assert names(sources(peers[2], peers)) == ["B", "A"]


def test_what_failed_is_passed_over():
    peers = [whole("A"), starter("B", 1), starter("C", 2)]
    assert names(sources(peers[2], peers, frozenset("B"))) == ["A"]
    assert sources(peers[2], peers, frozenset("AB")) == []
    assert names(spares(peers[2], peers, frozenset())) == ["A", "B"]


@given(PEERS)
def test_no_circle_whatever_the_directory(peers: list[Peer]):
    """Safety: who fetches from a starter stands behind it."""
    for me in (peer for peer in peers if not peer.whole):
        for chosen in (*sources(me, peers), *spares(me, peers, frozenset())):
            assert chosen.whole or chosen.ticket < me.ticket
            assert chosen.name != me.name


@given(PEERS, st.sets(st.sampled_from(NAMES)))
def test_liveness_whoever_can_be_served_is(peers: list[Peer], failed: set[str]):
    for me in (peer for peer in peers if not peer.whole):
        chosen = sources(me, peers, frozenset(failed))
        assert bool(chosen) == bool(spares(me, peers, frozenset(failed)))
        assert not {one.name for one in chosen} & failed


@given(PEERS)
def test_the_order_of_the_directory_does_not_matter(peers: list[Peer]):
    turned = peers[::-1]
    for me in peers:
        assert sources(me, peers) == sources(me, turned)


@given(st.integers(1, 9))
def test_nobody_sends_more_than_one_stream(count: int):
    """So N starters take little longer than one."""
    peers = [whole("A"), *(starter(name, n) for n, name in enumerate(NAMES[1 : count + 1], 1))]
    sent = [sources(me, peers)[0].name for me in peers[1:]]
    assert len(set(sent)) == count


def test_work_is_claimed_in_order_and_given_back_first():
    work = Work(10, 4)
    first, second = work.claim(), work.claim()
    assert (first, second, work.claim(), work.claim()) == ((0, 4), (4, 4), (8, 2), None)
    work.land(0)
    work.land(2)
    assert first is not None
    work.give_back(first)
    assert [work.claim(), work.claim(), work.claim()] == [(1, 1), (3, 1), None]
    assert not work.over


def test_neighbouring_runs_may_be_claimed_as_one():
    work = Work(20, 4)
    assert work.claim(runs=3) == Run(0, 12)
    work.land(1)
    assert not work.has_all(Run(1, 2))
    work.land(2)
    assert work.has_all(Run(1, 2))
    work.give_back(Run(0, 4))
    assert work.claim(runs=3) == Run(0, 1)  # 1 and 2 are there
    assert work.claim(runs=3) == Run(3, 1)  # 4 to 11 are somebody's
    assert work.claim(runs=9) == Run(12, 8)
    assert work.claim(runs=2) is None


@given(st.sets(st.integers(0, 19)), st.integers(1, 7))
def test_what_is_kept_is_claimed_by_nobody_and_all_else_is(there: set[int], run: int):
    work, claimed = Work(20, run), []
    work.keep(there)
    while (one := work.claim(runs=3)) is not None:
        claimed += range(one.first, one.first + one.length)
    assert claimed == sorted(set(range(20)) - there)
    assert (work.landed, work.over) == (len(there), len(there) == 20)


@pytest.mark.parametrize("seed", range(20))
def test_liveness_of_work_under_random_failures(seed: int):
    """Whoever claims and fails gives back; somebody gets everything in the end, nothing twice."""
    draw, work, landed = random.Random(seed), Work(53, 8), set()
    while (run := work.claim()) is not None:
        for number in range(run.first, run.first + draw.randint(0, run.length)):
            assert number not in landed
            landed.add(number)
            work.land(number)
        work.give_back(run)
    assert work.over
    assert landed == set(range(53))


def test_ended_work_is_claimed_by_nobody():
    work = Work(4, 1)
    work.end()
    assert work.claim(wait_s=30) is None
    assert not work.await_block(0, 30)
    assert not work.await_done(30)
    assert work.over
