"""What evicted models leave behind: never more chunks than there are, whoever left longest ago loses first."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from coordinator.simulate.remains import Remains


def test_who_comes_back_first_copies_nothing_and_who_was_needed_copies_that() -> None:
    remains = Remains(10)
    assert remains.take("a", 4, 1) == 0
    remains.leave("a", 4, 1)
    assert remains.take("a", 4, 1) == 4
    remains.leave("a", 4, 1)
    assert remains.take("b", 6, 1) == 0
    remains.leave("b", 6, 1)
    assert remains.take("a", 4, 1) == 3


def test_who_left_longest_ago_loses_first() -> None:
    remains = Remains(10)
    for model in ("a", "b"):
        remains.take(model, 4, 0)
    for model in ("a", "b"):
        remains.leave(model, 4, 0)
    remains.take("c", 5, 0)
    assert remains.take("b", 4, 0) == 4


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=40))
def test_what_is_still_there_was_left_and_a_device_never_has_more(steps: list[tuple[str, int]]) -> None:
    remains, there = Remains(10), {}
    for model, kv in steps:
        if model in there:
            remains.leave(model, 3, there.pop(model))
        elif sum(3 + other for other in there.values()) + 3 + kv <= 10:
            assert 0 <= remains.take(model, 3, kv) <= 3
            there[model] = kv
