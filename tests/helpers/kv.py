"""KV caches of every kind, with numpy's reshape as the independent reading of each layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from transfer.kv.boxes import Box, Dim
from transfer.kv.layout import KvLayout, cpu_packed, hnd, latent, nhd

Addresses = npt.NDArray[np.int64]


class Cache(NamedTuple):
    """A layout, and the address of each byte by [plane, block, token, head, byte] (one token where it is packed)."""

    layout: KvLayout
    addresses: Addresses


def cache(kind: str, blocks: int, tokens: int, heads: int, width: int) -> Cache:
    """`width`: bytes of one token of one head in one plane."""
    order, _, planes = kind.partition("-")
    if order == "packed":
        cell = 2 * tokens * width
        shape = np.arange(blocks * heads * cell).reshape(1, blocks, heads, 1, cell)
        return Cache(cpu_packed(blocks, tokens, heads, cell), shape.transpose(0, 1, 3, 2, 4))
    if order == "latent":
        return Cache(
            latent(blocks, tokens, width), np.arange(blocks * tokens * width).reshape(1, blocks, tokens, 1, -1)
        )
    make, inner = (nhd, (tokens, heads)) if order == "nhd" else (hnd, (heads, tokens))
    size = np.arange(2 * blocks * tokens * heads * width)
    named = {
        "separate": lambda: size.reshape(2, blocks, *inner, width),
        "paired": lambda: size.reshape(blocks, 2, *inner, width).swapaxes(0, 1),
        "joint": lambda: np.moveaxis(size.reshape(blocks, *inner, 2, width), 3, 0),
    }[planes]()
    if order == "hnd":
        named = named.swapaxes(2, 3)
    return Cache(make(blocks, tokens, heads, width, planes), named)  # type: ignore[arg-type]


def request_bytes(cache: Cache, blocks: Sequence[int], tokens: int) -> Addresses:
    """[plane, token of the request, head, byte] → address; a packed block is one token."""
    by_block = cache.addresses[:, list(blocks)]
    planes, count, slots, heads, width = by_block.shape
    return by_block.reshape(planes, count * slots, heads, width)[:, :tokens]


def gathering(boxes: Iterable[Box]) -> list[Box]:
    """The first half of a copy through a staging buffer, row by row: source to buffer."""
    rows: list[Box] = []
    at = 0
    for box in boxes:
        for steps in product(*(range(dim.steps) for dim in box.dims)):
            src = box.src + sum(step * dim.src_stride for step, dim in zip(steps, box.dims, strict=True))
            rows.append(Box(at, src, box.length, ()))
            at += box.length
    return rows


def placing(boxes: Iterable[Box]) -> list[Box]:
    """The second half, buffer to destination."""
    placed, at = [], 0
    for box in boxes:
        dims, width = [], box.length
        for dim in reversed(box.dims):
            dims.append(Dim(dim.steps, dim.dst_stride, width))
            width *= dim.steps
        placed.append(Box(box.dst, at, box.length, tuple(reversed(dims))))
        at += width
    return placed


KINDS = [f"{order}-{planes}" for order in ("nhd", "hnd") for planes in ("separate", "paired", "joint")]


@st.composite
def pulls(draw: st.DrawFn) -> tuple[Cache, Cache, list[int], list[int], tuple[int, int, int, int], int]:
    """Source and destination cache, block ids of a request, (P, D, H, decode rank), and the request's units."""
    family = draw(st.sampled_from(["dense", "packed", "latent"]))
    heads = 1 if family == "latent" else draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    fitting = st.sampled_from([tp for tp in range(1, 13) if heads % tp == 0 or tp % heads == 0])
    prefill_tp, decode_tp = draw(fitting), draw(fitting)
    width = draw(st.integers(1, 9))
    pick = st.sampled_from(KINDS) if family == "dense" else st.just(family)
    tokens = draw(st.integers(1, 6))
    other = (
        tokens if family == "packed" else draw(st.sampled_from([tokens, tokens, 2 * tokens, draw(st.integers(1, 6))]))
    )
    unit = int(np.gcd(tokens, other))
    units = draw(st.integers(1, 12))
    sides = []
    for tp, size in ((prefill_tp, tokens), (decode_tp, other)):
        needed = -(-units * unit // size)
        pool = needed + draw(st.integers(0, 3))
        start = draw(st.integers(0, pool - needed))
        plain = st.just(list(range(start, start + needed)))
        ids = draw(st.one_of(plain, st.permutations(range(pool)).map(lambda ids, n=needed: list(ids[:n]))))
        sides.append((cache(draw(pick), pool, size, max(1, heads // tp), width), ids))
    (src, src_ids), (dst, dst_ids) = sides
    return src, dst, src_ids, dst_ids, (prefill_tp, decode_tp, heads, draw(st.integers(0, decode_tp - 1))), units
