"""The pool's book-keeping."""

from __future__ import annotations

import contextlib

import hypothesis.strategies as st
import pytest
from hypothesis import given

from native.fences import Holder
from native.pool import Extent, NotYours, Owner, Pending, Pool, Shortage, Soiled
from native.protocol import Kind

CHUNK = 10
A, A2, B = Owner(Holder("a", "1"), 1), Owner(Holder("a", "1"), 2), Owner(Holder("b", "1"), 3)
PLENTY = 10**9


def full(capacity: int = 100, generation: int = 1) -> Pool:
    pool = Pool(capacity, CHUNK, generation)
    while pool.debt:
        pool.grow()
    return pool


def wipe(pool: Pool) -> tuple[int, ...]:
    chunks = pool.begin_wiping(PLENTY)
    pool.end_wiping(chunks, blank=True)
    return chunks


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
    wipe(pool)
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
    again = pool.take(A, Kind.WEIGHTS, 5, 77, 50, overwritten=True)
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


def test_who_maps_gets_blank_chunks_and_who_overwrites_them_the_soiled_ones_first() -> None:
    pool = full()
    left = pool.take(A, Kind.WEIGHTS, 6, 1, PLENTY)
    pool.give_back(A, left)
    assert (pool.blank, pool.soiled, pool.free, pool.debt) == (4, 6, 100, 0)
    with pytest.raises(Soiled):
        pool.take(B, Kind.KV, 5, 1, PLENTY)
    assert set(pool.take(B, Kind.WEIGHTS, 5, 2, PLENTY, overwritten=True)) == set(left[:5])
    assert not set(pool.take(B, Kind.KV, 4, 3, PLENTY)) & set(left)
    assert pool.most_kv == 4
    with pytest.raises(Soiled):
        pool.take(B, Kind.KV, 1, 4, PLENTY)
    wipe(pool)
    assert pool.take(B, Kind.KV, 1, 4, PLENTY) == left[5:]


def test_weights_and_kv_in_one_call_all_or_none() -> None:
    pool = full()
    left = pool.take(A, Kind.WEIGHTS, 7, 1, PLENTY)
    pool.give_back(A, left)
    for grant, error in ((50, Shortage), (PLENTY, Soiled)):
        with pytest.raises(error):
            pool.take(B, Kind.WEIGHTS, 2, 2, grant, overwritten=True, kv=4)
        assert pool.charged == 0
    chunks = pool.take(B, Kind.WEIGHTS, 2, 3, PLENTY, overwritten=True, kv=3)
    assert set(chunks[:2]) <= set(left)
    assert not set(chunks[2:]) & set(left)
    assert pool.bytes_of(B) == {Kind.WEIGHTS: 20, Kind.KV: 30}
    assert pool.most_kv == 3
    again = pool.take(B, Kind.WEIGHTS, 2, 3, PLENTY, overwritten=True)  # the answer was lost
    assert pool.bytes_of(B) == {Kind.WEIGHTS: 20, Kind.KV: 0}
    assert len(again) == 2


def test_a_chunk_that_is_being_wiped_is_nobodys_until_it_is_blank() -> None:
    pool = full(capacity=20)
    pool.give_back(A, pool.take(A, Kind.KV, 2, 1, PLENTY))
    (one,) = pool.begin_wiping(1)
    assert (pool.blank, pool.soiled, pool.free, pool.debt) == (0, 1, 20, 0)
    with pytest.raises(Soiled):
        pool.take(B, Kind.WEIGHTS, 2, 1, PLENTY, overwritten=True)
    pool.end_wiping((one,), blank=False)  # it failed
    assert (pool.blank, pool.soiled) == (0, 2)
    assert one in pool.take(B, Kind.WEIGHTS, 2, 1, PLENTY, overwritten=True)


STEPS = ("take", "write over", "come back", "give", "leave", "die", "wipe", "fail")


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5))))
def test_nobody_ever_gets_what_another_left(story: list[tuple[str, int]]) -> None:
    """Contents by chunk: 0 is blank, else the number of who wrote last. And everything can be had in the end."""
    pool, owners = full(capacity=50), (A, B)
    content: dict[int, int] = {}
    held: dict[Owner, list[int]] = {A: [], B: []}
    named: dict[str, list[int]] = {}
    for ticket, (step, count) in enumerate(story, 1):
        owner = owners[count % 2]
        if step in ("take", "write over"):
            with contextlib.suppress(Shortage, Pending):
                over, kv = step == "write over", ticket % 3
                got = pool.take(owner, Kind.WEIGHTS, count, ticket, PLENTY, overwritten=over, kv=kv)
                assert not any(content.get(chunk) for chunk in (got[count:] if over else got))
                assert len(got) == count + kv
                content.update(dict.fromkeys(got, owner.process))
                held[owner] += got
        elif step == "come back" and named:
            name = sorted(named)[count % len(named)]
            for attempt in range(3):  # wiped once, or twice where weights were to have the soiled ones
                found = pool.find(name, 0, len(named[name]))
                assert all(content[chunk] == named[name][place] for place, chunk in found.chunks.items())
                kv = min(ticket % 3, 5 - len(named[name]))
                try:
                    got = pool.take(
                        owner, Kind.WEIGHTS, len(named[name]), ticket, PLENTY, overwritten=True, kv=kv, found=found
                    )
                except Shortage:
                    break
                except Soiled:
                    assert attempt < 2
                    content.update(dict.fromkeys(wipe(pool), 0))
                    continue
                assert all(got[place] == chunk for place, chunk in found.chunks.items())
                content.update(dict.fromkeys(got, ticket + 10))
                held[owner] += got
                break
        elif step == "leave":
            pool.give_back(owner, held[owner], f"{ticket}", len(held[owner]))
            named[f"{ticket}"] = [content[chunk] for chunk in held[owner]]
            held[owner].clear()
        elif step == "give":
            pool.give_back(owner, [held[owner].pop() for _ in range(min(count, len(held[owner])))])
        elif step == "die":
            pool.release(owner)
            held[owner].clear()
        else:
            chunks = pool.begin_wiping(count)
            pool.end_wiping(chunks, blank=step == "wipe")
            content.update(dict.fromkeys(chunks if step == "wipe" else (), 0))
        assert pool.free + pool.charged == pool.capacity
    for owner in owners:
        pool.release(owner)
    with contextlib.suppress(Soiled):
        pool.take(A, Kind.KV, 5, PLENTY, PLENTY)
        pool.release(A)
    wipe(pool)
    assert len(pool.take(A, Kind.KV, 5, PLENTY, PLENTY)) == 5


def test_what_was_left_is_there_again_until_somebody_needs_the_chunks() -> None:
    pool = full()
    left = pool.take(A, Kind.WEIGHTS, 6, 1, PLENTY, overwritten=True)
    pool.give_back(A, tuple(reversed(left)), "mine", 6)
    assert (pool.blank, pool.soiled, pool.cached, pool.free) == (4, 0, 60, 100)
    assert pool.begin_wiping(PLENTY) == ()
    pool.take(B, Kind.WEIGHTS, 5, 1, PLENTY, overwritten=True)  # all that is blank, and one of what was left
    found = pool.find("mine", 1, 5)
    assert found.chunks == {0: left[4], 1: left[3], 2: left[2], 3: left[1]}
    back = pool.take(A, Kind.WEIGHTS, 4, 2, PLENTY, overwritten=True, found=pool.find("mine", 1, 4))
    assert back == (left[4], left[3], left[2], left[1])
    assert pool.find("mine", 0, 6).chunks == {0: left[5]}
    assert (pool.cached, pool.free) == (10, 10)


def test_what_is_left_never_keeps_the_next_kv_waiting() -> None:
    """As many chunks as a KV cache ever had are to be blank, even where contents are forgotten for it."""
    pool = full()
    pool.give_back(A, pool.take(A, Kind.KV, 3, 1, PLENTY))
    wipe(pool)
    weights = pool.take(A, Kind.WEIGHTS, 10, 2, PLENTY, overwritten=True)
    pool.give_back(A, weights, "mine", 10)
    assert (pool.blank, pool.cached, pool.to_wipe) == (0, 100, 3)
    wipe(pool)
    assert (pool.blank, pool.cached, pool.to_wipe) == (3, 70, 0)
    with pytest.raises(Soiled):
        pool.take(B, Kind.KV, 5, 1, PLENTY)
    assert (pool.soiled, pool.cached) == (2, 50)


def test_who_must_wait_for_blank_chunks_finds_what_was_left_all_the_same() -> None:
    pool = full()
    left = pool.take(A, Kind.WEIGHTS, 6, 1, PLENTY, overwritten=True)
    kv = pool.take(A, Kind.KV, 4, 2, PLENTY)
    pool.give_back(A, kv)
    pool.give_back(A, left, "mine", 6)
    with pytest.raises(Soiled):
        pool.take(A, Kind.WEIGHTS, 6, 3, PLENTY, overwritten=True, kv=4, found=pool.find("mine", 0, 6))
    assert (pool.soiled, pool.cached) == (4, 60)
    assert set(pool.begin_wiping(4)) == set(kv)
    pool.end_wiping(kv, blank=True)
    found = pool.find("mine", 0, 6)
    assert pool.take(A, Kind.WEIGHTS, 6, 3, PLENTY, overwritten=True, kv=4, found=found)[:6] == left


def test_of_what_was_found_only_so_much_is_given_up_as_nothing_else_can_be_wiped_for() -> None:
    pool = full()
    left = pool.take(A, Kind.WEIGHTS, 7, 1, PLENTY, overwritten=True)
    more = pool.take(A, Kind.WEIGHTS, 3, 2, PLENTY, overwritten=True)
    pool.give_back(A, left, "mine", 7)
    pool.give_back(A, more, "other", 3)
    with pytest.raises(Soiled):
        pool.take(A, Kind.WEIGHTS, 5, 3, PLENTY, overwritten=True, kv=5, found=pool.find("mine", 0, 5))
    assert pool.soiled == 5
    assert (pool.find("other", 0, 3).chunks, len(pool.find("mine", 0, 7).chunks)) == ({}, 5)
    wipe(pool)
    found = pool.find("mine", 0, 5)
    assert pool.take(A, Kind.WEIGHTS, 5, 3, PLENTY, overwritten=True, kv=5, found=found)[:5] == left[:5]


def test_a_content_is_noted_only_where_all_of_it_is_given_back_by_its_owner() -> None:
    pool = full()
    chunks = pool.take(A, Kind.WEIGHTS, 4, 1, PLENTY, overwritten=True)
    pool.give_back(A, chunks[:1])
    pool.give_back(A, chunks, "mine", 4)
    assert pool.cached == 0
    more = pool.take(A, Kind.WEIGHTS, 4, 2, PLENTY, overwritten=True)
    pool.give_back(A, more, "mine", 4)
    others = pool.take(B, Kind.WEIGHTS, 4, 1, PLENTY)
    pool.give_back(B, others, "mine", 4)  # the first stands
    assert pool.find("mine", 0, 4).chunks == dict(enumerate(more))
    assert pool.cached == 40


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
