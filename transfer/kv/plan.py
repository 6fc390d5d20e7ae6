"""Which heads of which blocks a decode rank takes from which prefill rank. Pure; both sides compute the same.

Heads lie on ranks as vLLM lays them (`QKVParallelLinear`, vllm/model_executor/layers/linear.py): a rank of size T owns
heads [r·H/T, (r+1)·H/T) where T divides H, and the single head ⌊r·H/T⌋ where H divides T, so T/H ranks are replicas of
it. Other sizes no model can have. The proof that every head of every block comes exactly once, and that replicas carry
equal load, is in docs/kv-transfer.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple


class PlanRefused(ValueError):
    """These sizes cannot be; the message names the argument and says what would do."""


class Pull(NamedTuple):
    """Take `num_heads` heads of blocks [block_lo, block_hi) of the request; heads are counted locally on each side."""

    prefill_rank: int
    block_lo: int
    block_hi: int
    src_head: int
    dst_head: int
    num_heads: int


class StagePull(NamedTuple):
    """Take `num_layers` layers from a pipeline stage; layers are counted locally on each side."""

    prefill_stage: int
    src_layer: int
    dst_layer: int
    num_layers: int


def plan_pull(
    prefill_tp: int,
    decode_tp: int,
    num_kv_heads: int,
    num_blocks: int,
    decode_rank: int,
    *,
    mla: bool = False,
    turn: int = 0,
) -> list[Pull]:
    """What decode rank `decode_rank` takes, by destination head, then by block: every cell exactly once.

    Args:
        num_kv_heads: KV heads of the whole model, H; does not count with `mla`: every rank holds the one latent head.
        num_blocks: blocks of the request.
        turn: rotates which replica serves which part, so that many short requests spread over the replicas too. Both
            sides take it from the request's id (`turn_of`).

    Raises:
        PlanRefused: a size below 1, a rank outside its group, or a size that neither divides the heads nor is a
            multiple of them.
    """
    heads = 1 if mla else num_kv_heads
    _check(prefill_tp, decode_tp, heads, num_blocks)
    if not 0 <= decode_rank < decode_tp:
        raise PlanRefused(f"decode_rank {decode_rank} is outside of decode_tp {decode_tp}: give 0 to {decode_tp - 1}")
    wanted = heads_of(decode_tp, heads, decode_rank)
    if prefill_tp <= heads:
        return _from_owners(prefill_tp, heads, num_blocks, wanted)
    consumer = decode_rank % max(1, decode_tp // heads)
    return [
        Pull(owner, lo, hi, 0, head - wanted.start, 1)
        for head in wanted
        for owner, lo, hi in _striped(prefill_tp, decode_tp, heads, num_blocks, head, consumer, turn)
    ]


def heads_of(tp: int, num_kv_heads: int, rank: int) -> range:
    """Heads of the model that `rank` of `tp` holds; `tp` divides `num_kv_heads` or is a multiple of it."""
    if tp > num_kv_heads:
        head = rank * num_kv_heads // tp
        return range(head, head + 1)
    each = num_kv_heads // tp
    return range(rank * each, (rank + 1) * each)


def closers(
    prefill_tp: int, decode_tp: int, num_kv_heads: int, num_blocks: int, *, mla: bool = False, turn: int = 0
) -> list[frozenset[int]]:
    """For each prefill rank the decode ranks whose *done* it waits for: those that read from it, or, where none does,
    one that says so. So a prefill rank whose part nobody needs (a short request, many replicas) need not wait for a
    lease to end. Raises as `plan_pull`."""
    readers: list[set[int]] = [set() for _ in range(prefill_tp)]
    for rank in range(decode_tp):
        for pull in plan_pull(prefill_tp, decode_tp, num_kv_heads, num_blocks, rank, mla=mla, turn=turn):
            readers[pull.prefill_rank].add(rank)
    return [frozenset(ranks or {owner % decode_tp}) for owner, ranks in enumerate(readers)]


def turn_of(request: str) -> int:
    """The `turn` of a request: the number in its id (32 hexadecimal digits, minted by us)."""
    return int(request, 16)


def plan_stages(prefill_layers: Sequence[int], decode_layers: Sequence[int], decode_stage: int) -> list[StagePull]:
    """Layer ranges that pipeline stage `decode_stage` takes, each argument being the layers of each stage in order.

    Raises:
        PlanRefused: the two sides do not hold equally many layers, or there is no such stage.
    """
    if sum(prefill_layers) != sum(decode_layers) or min((*prefill_layers, *decode_layers), default=0) < 0:
        raise PlanRefused(
            f"prefill_layers {list(prefill_layers)} and decode_layers {list(decode_layers)} must have equal sums"
        )
    if not 0 <= decode_stage < len(decode_layers):
        raise PlanRefused(f"decode_stage {decode_stage} is outside of the {len(decode_layers)} decode stages")
    start = sum(decode_layers[:decode_stage])
    end = start + decode_layers[decode_stage]
    pulls = []
    for stage, (lo, hi) in enumerate(pairwise(accumulate(prefill_layers, initial=0))):
        first, last = max(lo, start), min(hi, end)
        if first < last:
            pulls.append(StagePull(stage, first - lo, first - start, last - first))
    return pulls


def _check(prefill_tp: int, decode_tp: int, heads: int, num_blocks: int) -> None:
    for name, value, least in (
        ("prefill_tp", prefill_tp, 1),
        ("decode_tp", decode_tp, 1),
        ("num_kv_heads", heads, 1),
        ("num_blocks", num_blocks, 0),
    ):
        if value < least:
            raise PlanRefused(f"{name} is {value}: it must be at least {least}")
    for name, tp in (("prefill_tp", prefill_tp), ("decode_tp", decode_tp)):
        if heads % tp and tp % heads:
            raise PlanRefused(
                f"{name} {tp} cannot hold {heads} KV heads: it must divide num_kv_heads or be a multiple of it"
            )


def _from_owners(prefill_tp: int, heads: int, num_blocks: int, wanted: range) -> list[Pull]:
    """Each head has one owner: intersect intervals."""
    each = heads // prefill_tp
    pulls = []
    for owner in range(wanted.start // each, (wanted.stop - 1) // each + 1):
        first, last = max(wanted.start, owner * each), min(wanted.stop, (owner + 1) * each)
        if num_blocks:
            pulls.append(Pull(owner, 0, num_blocks, first - owner * each, first - wanted.start, last - first))
    return pulls


def _striped(
    prefill_tp: int, decode_tp: int, heads: int, num_blocks: int, head: int, consumer: int, turn: int
) -> list[tuple[int, int, int]]:
    """(prefill rank, block_lo, block_hi) of one head that has replicas.

    The blocks that all consumers of the head need are laid end to end and the line is cut into equal parts, one for
    each replica: parts differ by one block at most, and a consumer meets as few replicas as there can be.
    """
    replicas = prefill_tp // heads
    line = num_blocks * max(1, decode_tp // heads)
    start = consumer * num_blocks
    parts = []
    for part in range(replicas):
        lo = max(part * line // replicas, start)
        hi = min((part + 1) * line // replicas, start + num_blocks)
        if lo < hi:
            parts.append((head * replicas + (part + turn) % replicas, lo - start, hi - start))
    return parts
