"""The planner of KV pulls against a brute-force oracle: every head of every block exactly once, equal load."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.kv.plan import PlanRefused, Pull, StagePull, closers, heads_of, plan_pull, plan_stages, turn_of

SIZES = range(1, 17)
HEADS = range(1, 33)


def fits(tp: int, heads: int) -> bool:
    return heads % tp == 0 or tp % heads == 0


def held(tp: int, heads: int, rank: int) -> list[int]:
    """The issue's words, one head at a time: head h lies on the ranks r with ⌊r·H/T⌋ ≤ h < ⌈(r+1)·H/T⌉."""
    return [head for head in range(heads) if rank * heads // tp <= head < -(-(rank + 1) * heads // tp)]


def landed(pulls: list[Pull], prefill_tp: int, heads: int) -> Counter[tuple[int, int, int]]:
    """How often (block, local destination head) is written with model head h: counted cell by cell."""
    cells: Counter[tuple[int, int, int]] = Counter()
    for pull in pulls:
        source = held(prefill_tp, heads, pull.prefill_rank)
        for block in range(pull.block_lo, pull.block_hi):
            for head in range(pull.num_heads):
                cells[block, pull.dst_head + head, source[pull.src_head + head]] += 1
    return cells


def wanted(decode_tp: int, heads: int, rank: int, blocks: int) -> Counter[tuple[int, int, int]]:
    return Counter(
        {(block, local, head): 1 for block in range(blocks) for local, head in enumerate(held(decode_tp, heads, rank))}
    )


def check(prefill_tp: int, decode_tp: int, heads: int, blocks: int, *, mla: bool, turn: int) -> None:
    load: Counter[int] = Counter(dict.fromkeys(range(prefill_tp), 0))
    real = 1 if mla else heads
    for rank in range(decode_tp):
        pulls = plan_pull(prefill_tp, decode_tp, heads, blocks, rank, mla=mla, turn=turn)
        assert landed(pulls, prefill_tp, real) == wanted(decode_tp, real, rank, blocks)
        assert all(pull.num_heads > 0 and pull.block_lo < pull.block_hi for pull in pulls)
        for pull in pulls:
            load[pull.prefill_rank] += pull.num_heads * (pull.block_hi - pull.block_lo)
    assert max(load.values()) - min(load.values()) <= 2


@pytest.mark.parametrize("heads", HEADS)
def test_every_head_of_every_block_once_for_all_sizes(heads: int) -> None:
    for prefill_tp in SIZES:
        for decode_tp in SIZES:
            if fits(prefill_tp, heads) and fits(decode_tp, heads):
                for blocks in (0, 1, 2, 7):
                    check(prefill_tp, decode_tp, heads, blocks, mla=False, turn=blocks)


def test_one_latent_head_that_every_rank_holds() -> None:
    for prefill_tp in SIZES:
        for decode_tp in SIZES:
            for blocks in (1, 5, 13):
                check(prefill_tp, decode_tp, 128, blocks, mla=True, turn=0)


@given(st.data())
def test_large_sizes(data: st.DataObject) -> None:
    heads = data.draw(st.integers(1, 128))
    sizes = st.sampled_from([tp for tp in range(1, 129) if fits(tp, heads)])
    blocks, turn = data.draw(st.integers(0, 24)), data.draw(st.integers(0, 1 << 128))
    check(data.draw(sizes), data.draw(sizes), heads, blocks, mla=False, turn=turn)


@pytest.mark.parametrize(("tp", "heads"), [(tp, heads) for tp in SIZES for heads in HEADS if not fits(tp, heads)])
def test_sizes_that_no_model_has_are_refused_by_name(tp: int, heads: int) -> None:
    with pytest.raises(PlanRefused, match=f"prefill_tp {tp} cannot hold {heads} KV heads"):
        plan_pull(tp, 1, heads, 1, 0)
    with pytest.raises(PlanRefused, match=f"decode_tp {tp} cannot hold {heads} KV heads"):
        plan_pull(1, tp, heads, 1, 0)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("prefill_tp", (0, 1, 1, 1, 0)),
        ("decode_tp", (1, 0, 1, 1, 0)),
        ("num_kv_heads", (1, 1, 0, 1, 0)),
        ("num_blocks", (1, 1, 1, -1, 0)),
        ("decode_rank", (1, 2, 2, 1, 2)),
        ("decode_rank", (1, 2, 2, 1, -1)),
    ],
)
def test_a_size_that_cannot_be_is_named(name: str, sizes: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(PlanRefused, match=name):
        plan_pull(*sizes)


def test_sizes_that_do_not_divide_each_other() -> None:
    assert plan_pull(12, 8, 24, 5, 1) == [Pull(1, 0, 5, 1, 0, 1), Pull(2, 0, 5, 0, 1, 2)]
    assert plan_pull(6, 4, 12, 5, 3) == [Pull(4, 0, 5, 1, 0, 1), Pull(5, 0, 5, 0, 1, 2)]


def test_replicas_share_the_blocks() -> None:
    assert plan_pull(8, 4, 4, 10, 1) == [Pull(2, 0, 5, 0, 0, 1), Pull(3, 5, 10, 0, 0, 1)]
    assert plan_pull(2, 2, 1, 10, 1) == [Pull(1, 0, 10, 0, 0, 1)]


def test_one_block_goes_to_every_replica_in_turn() -> None:
    owners = {plan_pull(8, 1, 1, 1, 0, turn=turn)[0].prefill_rank for turn in range(8)}
    assert owners == set(range(8))
    assert turn_of("0f" * 16) % 256 == 15


@given(st.data())
def test_closers_are_the_readers_or_one_other(data: st.DataObject) -> None:
    heads = data.draw(st.integers(1, 16))
    sizes = st.sampled_from([tp for tp in SIZES if fits(tp, heads)])
    prefill_tp, decode_tp, blocks = data.draw(sizes), data.draw(sizes), data.draw(st.integers(0, 5))
    plans = {rank: plan_pull(prefill_tp, decode_tp, heads, blocks, rank) for rank in range(decode_tp)}
    for owner, told in enumerate(closers(prefill_tp, decode_tp, heads, blocks)):
        readers = {rank for rank, pulls in plans.items() if any(pull.prefill_rank == owner for pull in pulls)}
        assert told == readers if readers else len(told) == 1
        assert told <= set(range(decode_tp))


def test_heads_of_agrees_with_the_words() -> None:
    for heads in HEADS:
        for tp in SIZES:
            if fits(tp, heads):
                assert [list(heads_of(tp, heads, rank)) for rank in range(tp)] == [
                    held(tp, heads, rank) for rank in range(tp)
                ]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.data())
def test_every_layer_of_every_stage_once(prefill: list[int], data: st.DataObject) -> None:
    total = sum(prefill)
    cuts = sorted(data.draw(st.lists(st.integers(0, total), max_size=5)))
    decode = [hi - lo for lo, hi in zip([0, *cuts], [*cuts, total], strict=True)]
    for stage, layers in enumerate(decode):
        got = {}
        for pull in plan_stages(prefill, decode, stage):
            for i in range(pull.num_layers):
                assert pull.dst_layer + i not in got
                got[pull.dst_layer + i] = sum(prefill[: pull.prefill_stage]) + pull.src_layer + i
                assert pull.src_layer + i < prefill[pull.prefill_stage]
        assert got == {layer: sum(decode[:stage]) + layer for layer in range(layers)}


def test_stages_that_do_not_fit_are_refused() -> None:
    assert plan_stages([3, 3], [2, 4], 1) == [StagePull(0, 2, 0, 1), StagePull(1, 0, 1, 3)]
    with pytest.raises(PlanRefused, match="equal sums"):
        plan_stages([3, 3], [2, 3], 0)
    with pytest.raises(PlanRefused, match="decode_stage 2"):
        plan_stages([3, 3], [2, 4], 2)
