"""In which order weights come back."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from engine_patch.stages import Owners, entries_of, units_by_stage

UNIT = 4


def test_a_unit_comes_back_with_the_first_who_needs_a_byte_of_it():
    blocks = [(0, 5), (5, 4), (12, 4), (20, 4)]
    owners = Owners(4, {(0, 5): 2, (5, 4): 1, (12, 4): 3})
    assert units_by_stage(range(6), UNIT, blocks, owners) == ((5,), (1, 2), (0,), (3, 4))


def test_without_owners_everything_is_one_stage():
    assert units_by_stage([0, 1, 5], UNIT, [(0, 8), (20, 1)], Owners()) == ((0, 1, 5),)


def test_neighbours_on_both_sides_go_in_one_copy():
    source = {1: 104, 2: 108, 3: 112, 7: 116}
    assert entries_of([1, 2, 3, 7], UNIT, 1000, source) == [(1004, 104, 12), (1028, 116, 4)]
    assert entries_of([3, 1], UNIT, 1000, source) == [(1012, 112, 4), (1004, 104, 4)]


@given(st.data())
def test_every_byte_comes_back_once_and_none_after_its_first_use(data: st.DataObject):
    lengths = data.draw(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 12)), max_size=12))
    blocks, at = [], 0
    for hole, length in lengths:
        blocks.append((at + hole, length))
        at += hole + length
    count = data.draw(st.integers(1, 4))
    owned = {block: data.draw(st.integers(0, count - 1)) for block in blocks if data.draw(st.booleans())}
    units = range(-(-at // UNIT))
    stages = units_by_stage(units, UNIT, blocks, Owners(count, owned))
    assert sorted(unit for stage in stages for unit in stage) == list(units)
    when = {unit: number for number, stage in enumerate(stages) for unit in stage}
    for block in blocks:
        start, length = block
        assert all(when[byte // UNIT] <= owned.get(block, 0) for byte in range(start, start + length))
    source = {unit: 1000 + place * UNIT for place, unit in enumerate(units)}
    for stage in stages:
        moved = [(to + k, at + k) for to, at, length in entries_of(stage, UNIT, 5000, source) for k in range(length)]
        assert moved == [(5000 + u * UNIT + k, source[u] + k) for u in stage for k in range(UNIT)]
