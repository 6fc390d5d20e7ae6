"""Which KV bytes are saved: layouts by example, books by property."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import hypothesis.strategies as st
from hypothesis import given

from engine_patch.kv_blocks import KvBlocks, Place, coalesce, gaps
from engine_patch.kv_layout import books, scheduled_blocks, written_blocks

BLOCKS, PAGE = 10, 64
LAYERWISE = Place(offset=0, layers=3, layer_stride=BLOCKS * PAGE, block_stride=PAGE, page=PAGE)
BLOCKWISE = Place(offset=0, layers=3, layer_stride=PAGE, block_stride=3 * PAGE, page=PAGE)
SCATTERED = Place(offset=0, layers=3, layer_stride=PAGE, block_stride=3 * PAGE, page=PAGE // 2)
SIZE = 3 * BLOCKS * PAGE


def test_only_written_blocks_are_kept_in_every_layer():
    kv = KvBlocks([LAYERWISE], BLOCKS, SIZE)
    kv.use([4, 5])
    layer = BLOCKS * PAGE
    assert kv.keep() == [(at + layer * n, size) for n in range(3) for at, size in ((0, PAGE), (4 * PAGE, 2 * PAGE))]


def test_neighbouring_blocks_of_all_layers_are_one_range_where_blocks_are_outermost():
    kv = KvBlocks([BLOCKWISE], BLOCKS, SIZE)
    kv.use([1, 2])
    assert kv.keep() == [(0, 3 * 3 * PAGE)]


def test_what_nobody_needs_any_more_is_not_kept():
    kv = KvBlocks([BLOCKWISE], BLOCKS, SIZE)
    kv.use([1, 2, 3])
    kv.forget_all_but([2, 9])
    assert kv.written == {0, 2}
    assert kv.keep() == [(0, 3 * PAGE), (2 * 3 * PAGE, 3 * PAGE)]


def test_where_others_write_blocks_too_everything_is_kept():
    assert KvBlocks([LAYERWISE], BLOCKS, SIZE, everything=True).keep() == [(0, SIZE)]


@given(
    st.lists(st.one_of(st.just("switch"), st.sets(st.integers(0, BLOCKS - 1), max_size=4)), min_size=1, max_size=12),
    st.sampled_from([LAYERWISE, BLOCKWISE, SCATTERED]),
)
def test_a_block_never_shows_what_another_engine_left(story: list[object], place: Place):
    """Memory by bytes: 1 is ours, 0 is blank, as chunks for KV come (`native.pool`). A block that is used is never
    another's, one that was written is ours again after every switch."""
    kv = KvBlocks([place], BLOCKS, SIZE)
    memory = bytearray(SIZE)

    def bytes_of(block: int) -> list[int]:
        return [
            at + i
            for layer in range(place.layers)
            for at in [place.offset + layer * place.layer_stride + block * place.block_stride]
            for i in range(place.page)
        ]

    written: set[int] = set()
    for step in story:
        if step == "switch":
            saved = [(at, memory[at : at + size]) for at, size in kv.keep()]
            memory[:] = bytes(SIZE)
            for at, content in saved:
                memory[at : at + len(content)] = content
            continue
        assert isinstance(step, set)
        kv.use(step)
        for block in step:
            assert {memory[i] for i in bytes_of(block)} <= ({1} if block in written else {0})
            for i in bytes_of(block):
                memory[i] = 1
        written |= step


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 30))))
def test_ranges_and_their_gaps_cover_everything_once(ranges: list[tuple[int, int]]):
    merged = coalesce(sorted(ranges))
    covered = {i for start, length in ranges for i in range(start, start + length)}
    assert {i for start, length in merged for i in range(start, start + length)} == covered
    assert all(a[0] + a[1] < b[0] for a, b in pairwise(merged))
    assert {i for start, length in gaps(merged, 250) for i in range(start, start + length)} == set(range(250)) - covered


def _spec(page: int, views: bool = True) -> SimpleNamespace:
    return SimpleNamespace(page_size_bytes=page, has_layer_views=views)


def _config(*tensors: SimpleNamespace, groups: list[SimpleNamespace]) -> SimpleNamespace:
    return SimpleNamespace(num_blocks=BLOCKS, kv_cache_tensors=list(tensors), kv_cache_groups=groups)


def _tensor(layers: list[str]) -> SimpleNamespace:
    stride = BLOCKS * PAGE
    return SimpleNamespace(size=SIZE, layers=layers, layer_stride=stride, block_stride=PAGE, offset=0)


def test_vllms_config_is_read():
    group = SimpleNamespace(layer_names=["a", "b", "c"], kv_cache_spec=_spec(PAGE))
    kv = books(_config(_tensor(["a", "b", "c"]), groups=[group]), everything=False)
    assert kv.keep() == [(0, PAGE), (BLOCKS * PAGE, PAGE), (2 * BLOCKS * PAGE, PAGE)]


def test_a_group_of_unlike_layers_is_read_by_layer():
    mixed = SimpleNamespace(kv_cache_specs={"a": _spec(PAGE), "b": _spec(PAGE // 2)})
    group = SimpleNamespace(layer_names=["a", "b"], kv_cache_spec=mixed)
    kv = books(_config(_tensor(["a"]), _tensor(["b"]), groups=[group]), everything=False)
    assert kv.keep() == [(0, PAGE)]


def test_layers_without_pages_are_kept_whole():
    group = SimpleNamespace(layer_names=["a"], kv_cache_spec=_spec(PAGE, views=False))
    assert books(_config(_tensor(["a"]), groups=[group]), everything=False).keep() == [(0, SIZE)]


def test_scheduled_blocks_are_those_of_new_and_of_growing_requests():
    new = [SimpleNamespace(block_ids=([1, 2], [9])), SimpleNamespace(block_ids=([3],))]
    cached = SimpleNamespace(new_block_ids=[None, ([4], []), ([5], [6])])
    output = SimpleNamespace(scheduled_new_reqs=new, scheduled_cached_reqs=cached)
    assert scheduled_blocks(output) == {1, 2, 3, 4, 5, 6, 9}


def test_written_blocks_are_not_those_that_a_cache_hit_shares():
    """A new request with 20 tokens found, one that grows, one that comes back after a preemption with 8 found."""
    new = [SimpleNamespace(block_ids=([1, 2, 3, 4], [5, 6, 7]), num_computed_tokens=20)]
    cached = SimpleNamespace(
        req_ids=["grows", "still", "back"],
        new_block_ids=[([8], [9]), None, ([10, 11], [12])],
        num_computed_tokens=[64, 65, 8],
        resumed_req_ids={"back"},
    )
    output = SimpleNamespace(scheduled_new_reqs=new, scheduled_cached_reqs=cached)
    assert written_blocks(output, (8, 16)) == {3, 4, 6, 7, 8, 9, 11, 12}
