"""Who owns shared pages, and when they are free: not while anybody who had a right to them may have them mapped."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from native.daemon.shares import NoShare, OnlyPart, Shares
from native.fences import Holder
from native.pool import Owner, Pool
from native.protocol import Kind

A, B, C = (Owner(Holder(name, "1"), number) for number, name in enumerate("abc", 1))
CHUNKS, WEIGHTS, PLENTY = 10, 4, 10**9


def offered() -> tuple[Pool, Shares, tuple[int, ...]]:
    """`A` owns four chunks and offers them."""
    pool, shares = Pool(CHUNKS, 1, 1), Shares()
    while pool.debt:
        pool.grow()
    weights = pool.take(A, Kind.WEIGHTS, WEIGHTS, 1, PLENTY)
    shares.offer("0", "x", A, weights)
    return pool, shares, weights


def test_a_part_cannot_be_given_back_and_a_repeated_call_is_no_news() -> None:
    pool, shares, weights = offered()
    shares.open("0", "x", B)
    with pytest.raises(OnlyPart):
        shares.unmapped("0", pool, A, weights[:3])
    assert shares.unmapped("0", pool, A, weights) == ()
    assert pool.bytes_of(B)[Kind.WEIGHTS] == WEIGHTS
    assert shares.unmapped("0", pool, A, weights) == ()
    assert shares.unmapped("0", pool, B, weights) == weights


def test_nobody_shares_with_himself_or_what_nobody_offers() -> None:
    _, shares, _ = offered()
    for process, digest in ((A, "x"), (B, "y")):
        with pytest.raises(NoShare):
            shares.open("0", digest, process)


def test_over_a_restart_who_lives_inherits_from_who_died() -> None:
    pool, before, weights = offered()
    before.open("0", "x", B)
    before.open("0", "x", C)
    pool.take(A, Kind.KV, 1, 2, PLENTY)
    after, kept = Shares(), before.kept("0")
    fresh = Pool(CHUNKS, 1, 2)
    after.recall("0", kept, {C.process})
    fresh.adopt(A, pool.extents_of(A))
    after.forget(A.process, {"0": fresh})
    fresh.release(A)
    assert (fresh.owners, fresh.bytes_of(C)) == ((C,), {Kind.WEIGHTS: WEIGHTS, Kind.KV: 0})
    assert after.unmapped("0", fresh, C, weights) == weights


STEPS = st.tuples(st.sampled_from(["join", "leave", "die"]), st.sampled_from([A, B, C]))


@given(st.lists(STEPS, max_size=30))
def test_charged_once_while_anybody_has_them_mapped_and_free_when_nobody_has(story: list[tuple[str, Owner]]) -> None:
    pool, shares, weights = offered()
    mapped = {A}
    for step, process in story:
        share = shares.get("0", "x")
        if step == "join" and share is not None and process not in mapped:
            shares.open("0", "x", process)
            mapped.add(process)
        elif step == "leave" and process in mapped and share is not None:
            if share.owner == process:
                pool.give_back(process, shares.unmapped("0", pool, process, weights))
            else:
                shares.close(share, process)
            mapped.discard(process)
        elif step == "die":
            shares.forget(process.process, {"0": pool})
            pool.release(process)
            mapped.discard(process)
        owners = {pool.owner_of(chunk) for chunk in weights} - {None}
        assert pool.charged == (WEIGHTS if mapped else 0)
        assert (len(owners) == 1 and owners <= mapped) if mapped else not owners
        if mapped:
            assert shares.rights("0") == dict.fromkeys(weights, frozenset(p.process for p in mapped - owners))
