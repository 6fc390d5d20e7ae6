"""The pool's book-keeping."""

from __future__ import annotations

import pytest

from native.fences import Holder
from native.pool import Extent, NotYours, Owner, Pending, Pool, Shortage
from native.protocol import Kind

CHUNK = 10
A, A2, B = Owner(Holder("a", "1"), 1), Owner(Holder("a", "1"), 2), Owner(Holder("b", "1"), 3)
PLENTY = 10**9


def full(capacity: int = 100, generation: int = 1) -> Pool:
    pool = Pool(capacity, CHUNK, generation)
    while pool.debt:
        pool.grow()
    return pool


def test_capacity_is_whole_chunks_and_grows_no_further() -> None:
    pool = full(105)
    assert (pool.capacity, pool.free, pool.charged) == (100, 100, 0)
    with pytest.raises(Shortage):
        pool.grow()


def test_chunks_change_hands_but_are_never_shared() -> None:
    pool = full()
    mine = pool.take(A, Kind.WEIGHTS, 6, 1, PLENTY)
    others = pool.take(B, Kind.KV, 4, 1, PLENTY)
    assert not set(mine) & set(others)
    assert pool.bytes_of(A) == {Kind.WEIGHTS: 60, Kind.KV: 0}
    assert pool.give_back(A, mine) == 60
    assert set(pool.take(B, Kind.WEIGHTS, 6, 2, PLENTY)) == set(mine)


def test_capacity_is_never_exceeded() -> None:
    pool = full()
    pool.take(A, Kind.WEIGHTS, 6, 1, PLENTY)
    with pytest.raises(Shortage):
        pool.take(B, Kind.WEIGHTS, 5, 1, PLENTY)
    assert pool.charged == 60


def test_a_grant_is_of_the_whole_engine() -> None:
    pool = full()
    pool.take(A, Kind.WEIGHTS, 3, 1, 50)
    with pytest.raises(Shortage):
        pool.take(A2, Kind.WEIGHTS, 3, 2, 50)
    pool.take(A2, Kind.WEIGHTS, 2, 3, 50)


def test_the_same_ticket_again_takes_back_what_the_lost_answer_held() -> None:
    pool = full()
    lost = pool.take(A, Kind.WEIGHTS, 5, 77, 50)
    again = pool.take(A, Kind.WEIGHTS, 5, 77, 50)
    assert set(again) == set(lost)
    assert pool.charged == 50


def test_giving_back_is_idempotent_and_only_ones_own() -> None:
    pool = full()
    mine = pool.take(A, Kind.WEIGHTS, 2, 1, PLENTY)
    assert pool.give_back(A, mine) == 20
    assert pool.give_back(A, mine) == 0
    others = pool.take(B, Kind.WEIGHTS, 1, 1, PLENTY)
    rest = pool.take(A, Kind.WEIGHTS, 1, 2, PLENTY)
    with pytest.raises(NotYours):
        pool.give_back(A, (*rest, *others))
    assert pool.charged == 20


def test_death_brings_everything_back() -> None:
    pool = full()
    pool.take(A, Kind.WEIGHTS, 2, 1, PLENTY)
    pool.take(A, Kind.KV, 2, 2, PLENTY)
    pool.take(A2, Kind.KV, 1, 1, PLENTY)
    assert pool.release(A) == 40
    assert pool.release(A) == 0
    assert pool.held_by(A.holder) == 10
    assert pool.owners == (A2,)


def test_pages_from_before_a_restart_stay_charged_until_they_are_given_back() -> None:
    before = full(generation=1)
    old = before.take(A, Kind.WEIGHTS, 6, 5, PLENTY)
    pool = Pool(100, CHUNK, generation=2)
    pool.adopt(A, before.extents_of(A))
    assert (pool.charged, pool.debt) == (60, 4)
    while pool.debt:
        pool.grow()
    with pytest.raises(Shortage):
        pool.take(B, Kind.WEIGHTS, 5, 1, PLENTY)
    assert pool.give_back(A, old[:2]) == 20
    with pytest.raises(Pending):
        pool.take(B, Kind.WEIGHTS, 5, 1, PLENTY)
    assert pool.debt == 2
    pool.grow()
    assert len(pool.take(B, Kind.WEIGHTS, 5, 1, PLENTY)) == 5
    assert pool.give_back(A, old[:2]) == 0


def test_ids_are_never_used_twice_over_restarts() -> None:
    before, after = full(generation=1), full(generation=2)
    ids = {chunk for pool in (before, after) for chunk in pool.take(A, Kind.KV, 10, 1, PLENTY)}
    assert len(ids) == 20


def test_a_retried_map_over_a_restart_drops_the_pages_nobody_has() -> None:
    before = full(generation=1)
    before.take(A, Kind.WEIGHTS, 6, 5, PLENTY)
    pool = Pool(100, CHUNK, generation=2)
    pool.adopt(A, before.extents_of(A))
    while pool.debt:
        pool.grow()
    with pytest.raises(Pending):
        pool.take(A, Kind.WEIGHTS, 6, 5, 60)
    while pool.debt:
        pool.grow()
    assert len(pool.take(A, Kind.WEIGHTS, 6, 5, 60)) == 6
    assert pool.charged == 60


def test_a_change_of_the_chunk_size_counts_bytes() -> None:
    pool = Pool(100, CHUNK, generation=2)
    pool.adopt(A, [Extent(Kind.WEIGHTS, 1, 0, 3, 15)])
    assert (pool.charged, pool.debt) == (45, 5)
    assert pool.release(A) == 45
    assert pool.debt == 10


def test_extents_are_runs() -> None:
    pool = full()
    pool.take(A, Kind.WEIGHTS, 3, 1, PLENTY)
    pool.take(A, Kind.KV, 2, 2, PLENTY)
    first = 1 << 24
    assert pool.extents_of(A) == (
        Extent(Kind.WEIGHTS, 1, first, 3, CHUNK),
        Extent(Kind.KV, 2, first + 3, 2, CHUNK),
    )
