"""Plans turned into copies: against numpy's own reading of each layout, byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from native import _native
from native._native import Boxes, copy_kernels, crc32c
from tests.helpers.kv import KINDS, Cache, cache, gathering, placing, pulls, request_bytes
from tests.helpers.memory import buffer, read, write
from transfer.kv.boxes import Box, Dim, Run, boxes, long_rows, runs, split
from transfer.kv.copies import Copies
from transfer.kv.layout import KvLayout, LayoutRefused, cpu_packed, hnd, nhd, unit_tokens
from transfer.kv.plan import Pull, plan_pull

Range = tuple[int, int]
Copy = Callable[[Sequence[Box], Range, Range], int]
Case = tuple[Cache, Cache, list[int], list[int], tuple[int, int, int, int], int]


def place(boxes: Sequence[Box], dst: Range, src: Range, kernel: str = "") -> int:
    return _native.place(Boxes(boxes), dst, src, kernel)


def gather(boxes: Sequence[Box], dst: Range, src: Range) -> int:
    return _native.gather(Boxes(boxes), dst, src)


def scatter(boxes: Sequence[Box], dst: Range, src: Range) -> int:
    return _native.scatter(Boxes(boxes), dst, src)


def bytes_of(run: Run) -> list[tuple[int, int]]:
    return [(run.dst + i, run.src + i) for i in range(run.length)]


def oracle(pull: Pull, src: Cache, dst: Cache, src_ids: list[int], dst_ids: list[int]) -> list[tuple[int, int]]:
    """(destination, source) of each byte of a pull, sorted."""
    unit = unit_tokens(src.layout, dst.layout)
    size = 1 if src.layout.packed else unit
    rows = slice(pull.block_lo * size, pull.block_hi * size)
    pick = [
        request_bytes(side, ids, 10**6)[:, rows, head : head + pull.num_heads].ravel()
        for side, ids, head in ((dst, dst_ids, pull.dst_head), (src, src_ids, pull.src_head))
    ]
    return sorted(zip(pick[0].tolist(), pick[1].tolist(), strict=True))


@given(pulls())
def test_every_byte_of_a_pull_once_in_the_fewest_runs(case: Case) -> None:
    src, dst, src_ids, dst_ids, (prefill_tp, decode_tp, heads, rank), units = case
    landed = []
    for pull in plan_pull(prefill_tp, decode_tp, heads, units, rank):
        expected = oracle(pull, src, dst, src_ids, dst_ids)
        copies = boxes(pull, src.layout, dst.layout, src_ids, dst_ids)
        flat = runs(copies)
        assert [pair for run in flat for pair in bytes_of(run)] == expected
        breaks = sum(b != (a[0] + 1, a[1] + 1) for a, b in pairwise(expected))
        assert len(flat) == breaks + 1
        assert sum(copy.bytes for copy in copies) == len(expected)
        landed += [at for at, _ in expected]
    unit = 1 if src.layout.packed else unit_tokens(src.layout, dst.layout)
    assert sorted(landed) == sorted(request_bytes(dst, dst_ids, units * unit).ravel().tolist())


@given(pulls(), st.integers(1, 300))
def test_copies_know_what_follows_from_their_boxes(case: Case, limit: int) -> None:
    src, dst, src_ids, dst_ids, sizes, units = case
    for pull in plan_pull(*sizes[:3], units, sizes[3]):
        made = boxes(pull, src.layout, dst.layout, src_ids, dst_ids)
        copies, flat = Copies(made), runs(made)
        assert Copies.of(copies) is copies
        assert Copies.of(made) == copies == tuple(made)
        assert copies.src_end == max(run.src + run.length for run in flat)
        assert copies.dst_end == max(run.dst + run.length for run in flat)
        assert copies.bytes == sum(run.length for run in flat)
        chunks = copies.chunks(limit)
        assert [chunk.boxes for chunk in chunks] == split(made, limit)
        assert copies.chunks(limit) is chunks


@pytest.mark.parametrize("box", [Box(0, -1, 5, ()), Box(-1, 0, 5, ()), Box(0, 0, 0, ())])
def test_offsets_and_lengths_that_are_none_end_nowhere(box: Box) -> None:
    assert -1 in (Copies([box]).src_end, Copies([box]).dst_end)


@given(pulls(), st.integers(1, 300))
def test_chunks_and_staging_keep_every_byte(case: Case, limit: int) -> None:
    src, dst, src_ids, dst_ids, sizes, units = case
    for pull in plan_pull(*sizes[:3], units, sizes[3]):
        copies = boxes(pull, src.layout, dst.layout, src_ids, dst_ids)
        chunks = split(copies, limit)
        assert all(0 < sum(box.bytes for box in chunk) <= limit for chunk in chunks)
        assert runs(box for chunk in chunks for box in chunk) == runs(copies)
        for chunk in chunks:
            gather, scatter = gathering(chunk), placing(chunk)
            stage = {at: byte for run in runs(gather) for at, byte in bytes_of(run)}
            assert sorted(stage) == list(range(sum(box.bytes for box in chunk)))
            through = sorted((at, stage[byte]) for run in runs(scatter) for at, byte in bytes_of(run))
            assert through == [pair for run in runs(chunk) for pair in bytes_of(run)]


@given(pulls(), st.integers(1, 40), st.booleans())
def test_long_rows_are_the_stream_in_its_order(case: Case, least: int, dst: bool) -> None:
    src, dst_, src_ids, dst_ids, sizes, units = case
    for pull in plan_pull(*sizes[:3], units, sizes[3]):
        copies = boxes(pull, src.layout, dst_.layout, src_ids, dst_ids)
        rows = long_rows(copies, least, dst=dst)
        gather, scatter = gathering(copies), placing(copies)
        halves = (
            [(run.src, run.dst) for run in runs(scatter) for run in _singles(run)]
            if dst
            else [(run.dst, run.src) for run in runs(gather) for run in _singles(run)]
        )
        if rows is None:
            assert least > 1
        else:
            assert [at + i for at, length in rows for i in range(length)] == [at for _, at in sorted(halves)]
            assert len(rows) == 1 or all(length >= least for _, length in rows)


def _singles(run: Run) -> list[Run]:
    return [Run(run.dst + i, run.src + i, 1) for i in range(run.length)]


@pytest.mark.parametrize("kernel", copy_kernels())
@given(case=pulls(), lead=st.integers(0, 130), seed=st.integers(0, 1000))
def test_the_kernels_place_what_numpy_places(kernel: str, case: Case, lead: int, seed: int) -> None:
    src, dst, src_ids, dst_ids, sizes, units = case
    noise = np.random.default_rng(seed)
    content = noise.integers(0, 256, src.layout.extent, dtype=np.uint8)
    before = noise.integers(0, 256, dst.layout.extent, dtype=np.uint8)
    expected = before.copy()
    with buffer(src.layout.extent + lead) as src_at, buffer(dst.layout.extent + 2 * lead) as dst_at:
        write(src_at + lead, content.tobytes())
        write(dst_at + lead, before.tobytes())
        for pull in plan_pull(*sizes[:3], units, sizes[3]):
            for to, whence in oracle(pull, src, dst, src_ids, dst_ids):
                expected[to] = content[whence]
            copies = boxes(pull, src.layout, dst.layout, src_ids, dst_ids)
            done = place(copies, (dst_at + lead, len(before)), (src_at + lead, len(content)), kernel)
            assert done == sum(box.bytes for box in copies)
        assert read(dst_at + lead, len(before)) == expected.tobytes()


@pytest.mark.parametrize("kernel", copy_kernels())
@given(st.data())
def test_rows_of_any_length_at_any_address(kernel: str, data: st.DataObject) -> None:
    length = data.draw(st.one_of(st.integers(1, 300), st.integers(4000, 4200), st.integers(16000, 17000)))
    rows, gap = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 70))
    to, whence = data.draw(st.integers(0, 70)), data.draw(st.integers(0, 70))
    size = rows * (length + gap) + 70
    content = np.random.default_rng(length).integers(0, 256, size, dtype=np.uint8).tobytes()
    with buffer(size) as src_at, buffer(size) as dst_at:
        write(src_at, content)
        write(dst_at, bytes(size))
        box = Box(to, whence, length, (Dim(rows, length + gap, length),))
        place([box], (dst_at, size), (src_at, size), kernel)
        expected = bytearray(size)
        for row in range(rows):
            at = to + row * (length + gap)
            expected[at : at + length] = content[whence + row * length : whence + (row + 1) * length]
        assert read(dst_at, size) == expected


@given(pulls(), st.integers(0, 70))
def test_gathered_rows_lie_end_to_end_and_are_summed(case: Case, lead: int) -> None:
    src, dst, src_ids, dst_ids, sizes, units = case
    content = np.random.default_rng(lead).integers(0, 256, src.layout.extent, dtype=np.uint8).tobytes()
    with buffer(len(content)) as src_at, buffer(len(content) + lead) as stage:
        write(src_at, content)
        for pull in plan_pull(*sizes[:3], units, sizes[3]):
            copies = boxes(pull, src.layout, dst.layout, src_ids, dst_ids)
            expected = b"".join(content[row.src : row.src + row.length] for row in gathering(copies))
            total = gather(copies, (stage + lead, len(expected)), (src_at, len(content)))
            assert read(stage + lead, len(expected)) == expected
            assert total == crc32c(stage + lead, len(expected))


WHOLE = st.sampled_from([256, 512, 768, 2304, 16384])
"""Lengths of rows that are summed while they are copied, where the CPU can."""


@given(
    st.one_of(
        st.lists(st.tuples(WHOLE, st.integers(1, 40)), min_size=1, max_size=4),
        st.lists(st.tuples(st.one_of(WHOLE, st.integers(1, 9000)), st.integers(1, 40)), min_size=1, max_size=4),
    ),
    st.one_of(st.just(0), st.integers(1, 700)),
    st.integers(0, 70),
)
def test_rows_of_several_lengths_are_gathered_one_behind_the_other(
    sizes: list[tuple[int, int]], gap: int, lead: int
) -> None:
    made, at = [], lead
    for length, count in sizes:
        made.append(Box(0, at, length, (Dim(count, 0, length + gap),)))
        at += count * (length + gap)
    content = np.random.default_rng(at).integers(0, 256, at, dtype=np.uint8).tobytes()
    expected = b"".join(content[row.src : row.src + row.length] for row in gathering(made))
    with buffer(at) as src, buffer(lead + len(expected) + 64) as stage:
        write(src, content)
        write(stage, bytes(lead + len(expected) + 64))
        total = gather(made, (stage + lead, len(expected)), (src, at))
        assert read(stage, lead + len(expected) + 64) == bytes(lead) + expected + bytes(64)
        assert total == crc32c(stage + lead, len(expected), 0, "portable")


@given(
    st.lists(st.tuples(st.one_of(WHOLE, st.integers(1, 9000)), st.integers(1, 40)), min_size=1, max_size=4)
    | st.lists(st.tuples(WHOLE, st.integers(1, 40)), min_size=1, max_size=4),
    st.sampled_from([0, 64, 256, 300]),
    st.integers(0, 2).map(lambda some: 32 * some),
)
def test_what_lies_end_to_end_is_scattered_to_rows_of_any_length_and_summed(
    sizes: list[tuple[int, int]], gap: int, lead: int
) -> None:
    made, at = [], lead
    for length, count in sizes:
        made.append(Box(at, 7, length, (Dim(count, length + gap, 3),)))  # where it comes from does not count
        at += count * (length + gap)
    content = np.random.default_rng(at).integers(0, 256, at, dtype=np.uint8).tobytes()
    expected, taken = bytearray(at + 64), 0
    for row in (row for box in placing(made) for row in runs([box])):
        expected[row.dst : row.dst + row.length] = content[row.src : row.src + row.length]
        taken += row.length
    with buffer(at) as src, buffer(at + 128) as room:
        to = -(-room // 64) * 64
        write(src, content)
        write(to, bytes(at + 64))
        assert scatter(made, (to, at), (src, taken)) == crc32c(src, taken, 0, "portable")
        assert read(to, at + 64) == bytes(expected)


def test_rows_of_no_bytes_are_scattered_at_once() -> None:
    with buffer(100) as dst, buffer(100) as src:
        assert scatter([Box(0, 0, 0, ())], (dst, 100), (src, 100)) == 0


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (Box(1, 0, 100, ()), "leaves the destination"),
        (Box(0, 0, 10, (Dim(10, 0, 0),)), "leaves the source"),
        (Box(0, 0, 5, (Dim(0, 1, 1),)), "loop of no steps"),
        (Box(0, 0, 1 << 40, (Dim(1 << 40, 0, 0),)), "wraps"),
    ],
)
def test_what_cannot_be_scattered_moves_nothing(box: Box, reason: str) -> None:
    moves_nothing(scatter, [Box(0, 0, 5, ()), box], reason, source=104)


def test_rows_of_no_bytes_are_gathered_at_once() -> None:
    with buffer(100) as stage, buffer(100) as src:
        assert gather([Box(0, 0, 0, (Dim(1 << 40, 0, 0),))], (stage, 100), (src, 100)) == 0


@pytest.mark.parametrize(("length", "rows"), [(512, 300), (24575, 3), (24576, 2), (24577, 3), (100_001, 2)])
def test_what_is_gathered_is_summed_piece_by_piece(length: int, rows: int) -> None:
    size = length * rows
    content = np.random.default_rng(length).integers(0, 256, 2 * size, dtype=np.uint8).tobytes()
    with buffer(2 * size) as src, buffer(size) as stage:
        write(src, content)
        total = gather([Box(0, 0, length, (Dim(rows, 0, 2 * length),))], (stage, size), (src, 2 * size))
        expected = b"".join(content[at : at + length] for at in range(0, 2 * size, 2 * length))
        assert read(stage, size) == expected
        assert total == crc32c(stage, size)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (Box(0, 0, 101, ()), "leaves the destination"),
        (Box(0, 0, 10, (Dim(11, 0, 0),)), "leaves the destination"),
        (Box(0, 96, 10, ()), "leaves the source"),
        (Box(0, 0, 5, (Dim(0, 1, 1),)), "loop of no steps"),
        (Box(0, 0, 1 << 40, (Dim(1 << 40, 0, 0),)), "wraps"),
        (Box(0, 0, (1 << 64) - 1, ()), "wraps"),
    ],
)
def test_what_cannot_be_gathered_moves_nothing(box: Box, reason: str) -> None:
    moves_nothing(gather, [Box(0, 0, 5, ()), box], reason, source=105)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (Box(1, 0, 100, ()), "leaves the destination"),
        (Box(0, 1, 100, ()), "leaves the source"),
        (Box(0, 0, 10, (Dim(2, 91, 0),)), "leaves the destination"),
        (Box(0, 0, 10, (Dim(2, 0, 91),)), "leaves the source"),
        (Box(0, 0, 10, (Dim(0, 1, 1),)), "loop of no steps"),
        (Box(0, 0, 1, (Dim(1 << 40, 1 << 40, 0),)), "wraps"),
        (Box((1 << 64) - 1, 0, 2, ()), "wraps"),
        (Box(0, 0, 1, (Dim(1, 1, 1),) * 5), "four loops"),
    ],
)
def test_a_box_that_leaves_its_range_moves_nothing(box: Box, reason: str) -> None:
    moves_nothing(place, [Box(0, 0, 5, ()), box], reason, source=100)


def moves_nothing(copy: Copy, wanted: list[Box], reason: str, source: int) -> None:
    """Into 100 bytes, of `source`; behind the 100 nothing is written either."""
    with buffer(105) as dst, buffer(source) as src:
        write(dst, bytes(105))
        write(src, b"x" * source)
        with pytest.raises(ValueError, match=reason):
            copy(wanted, (dst, 100), (src, source))
        assert read(dst, 105) == bytes(105)


@pytest.mark.parametrize("copy", [place, gather, scatter])
def test_ranges_that_overlap_are_refused(copy: Copy) -> None:
    with buffer(100) as dst, pytest.raises(ValueError, match="overlap"):
        copy([], (dst, 100), (dst + 99, 1))


def test_a_kernel_that_is_not_there_is_refused() -> None:
    with buffer(100) as dst, buffer(100) as src, pytest.raises(ValueError, match="kernel"):
        place([], (dst, 100), (src, 100), "nonsense")


@pytest.mark.parametrize("kind", [*KINDS, "packed", "latent"])
def test_equal_sizes_are_one_run(kind: str) -> None:
    """The same size on both sides and blocks in a row: a plane is one run, and joint ones are one in all."""
    side = cache(kind, 6, 4, 1 if kind == "latent" else 2, 8)
    copies = boxes(Pull(0, 0, 4, 0, 0, side.layout.heads), side.layout, side.layout, [1, 2, 3, 4], [2, 3, 4, 5])
    assert len(copies) == 1
    assert copies[0].rows == len(runs(copies))
    assert len(runs(copies)) == (2 if kind.endswith("separate") else 1)


def test_heads_first_needs_no_reordering() -> None:
    """4 → 2 over 8 heads: half a block is one run with heads first, and as many runs as tokens otherwise."""
    pull = Pull(1, 0, 1, 0, 2, 2)
    first = boxes(pull, hnd(1, 128, 2, 256), hnd(1, 128, 4, 256), [0], [0])
    assert runs(first) == [Run(128 * 512, 0, 128 * 512), Run(128 * 1536, 128 * 512, 128 * 512)]
    assert len(runs(boxes(pull, nhd(1, 128, 2, 256), nhd(1, 128, 4, 256), [0], [0]))) == 2 * 128


@pytest.mark.parametrize(
    ("src", "dst", "reason"),
    [
        (cpu_packed(4, 32, 2, 512), cpu_packed(4, 64, 2, 1024), "block_tokens 32 and 64 differ"),
        (cpu_packed(4, 32, 2, 512), hnd(4, 32, 2, 8), "slots"),
        (nhd(4, 32, 2, 8), nhd(4, 32, 2, 16), "slot_bytes"),
    ],
)
def test_layouts_that_do_not_fit_are_refused_by_name(src: KvLayout, dst: KvLayout, reason: str) -> None:
    with pytest.raises(LayoutRefused, match=reason):
        boxes(Pull(0, 0, 1, 0, 0, 1), src, dst, [0], [0])


@pytest.mark.parametrize(
    ("pull", "src_ids", "reason"),
    [
        (Pull(0, 0, 1, 1, 0, 2), [0], "src_head 1"),
        (Pull(0, 0, 1, 0, 1, 2), [0], "dst_head 1"),
        (Pull(0, 0, 2, 0, 0, 1), [0], "unit 1"),
        (Pull(0, 0, 1, 0, 0, 1), [4], "block 4"),
        (Pull(0, 0, 1, 0, 0, 1), [-1], "block -1"),
    ],
)
def test_what_lies_outside_is_refused_by_name(pull: Pull, src_ids: list[int], reason: str) -> None:
    with pytest.raises(LayoutRefused, match=reason):
        boxes(pull, nhd(4, 32, 2, 8), nhd(4, 32, 2, 8), src_ids, [0, 1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"heads": 0}, "heads is 0"),
        ({"slots": 3}, "slots is 3"),
        ({"planes": ()}, "planes"),
        ({"planes": (8, 0)}, "planes"),
        ({"planes": (0, 100)}, "too short"),
        ({"head_stride": 7}, "too short"),
        ({"block_stride": 32 * 16 - 1}, "too short"),
        ({"planes": (0, 8, 24)}, "equal distances"),
    ],
)
def test_layouts_that_overlap_themselves_are_refused(change: dict[str, int], reason: str) -> None:
    good = {"planes": (0, 4 * 512), "num_blocks": 4, "heads": 2, "block_tokens": 32, "slots": 32}
    good |= {"block_stride": 512, "head_stride": 8, "slot_stride": 16, "slot_bytes": 8}
    KvLayout(**good)  # type: ignore[arg-type]
    with pytest.raises(LayoutRefused, match=reason):
        KvLayout(**{**good, **change})  # type: ignore[arg-type]
