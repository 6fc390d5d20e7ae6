"""What is left under a name, in which order it is given up, and that nothing of it is counted twice."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from native.remains import Remains

NAMES = ("a", "b", "c")


def test_of_a_content_that_was_taken_nothing_stands_in_the_way() -> None:
    remains = Remains()
    assert remains.leave("a", [1, 2])
    assert remains.leave("b", [3])
    remains.take(remains.find("a", 0, 2))
    assert remains.give_up(2) == [3]
    assert remains.leave("a", [1, 2])
    assert remains.give_up(2) == [2, 1]


def test_what_somebody_comes_for_counts_as_left_now() -> None:
    remains = Remains()
    remains.leave("a", [1, 2, 3])
    remains.leave("b", [4])
    found = remains.find("a", 1, 2)
    remains.take(found)
    remains.put_back(found)
    assert remains.give_up(1) == [4]
    assert remains.find("a", 0, 3).chunks == {0: 1, 1: 2, 2: 3}


STEPS = st.tuples(st.sampled_from(["leave", "take", "back", "give up"]), st.sampled_from(NAMES), st.integers(0, 3))


@given(st.lists(STEPS, max_size=40))
def test_each_chunk_lies_in_one_place_and_all_are_counted(story: list[tuple[str, str, int]]) -> None:
    remains, number = Remains(), 0
    for step, name, count in story:
        before = len(remains)
        if step == "leave":
            left = remains.leave(name, range(number, number + count))
            assert len(remains) == before + (count if left else 0)
            number += count
        elif step == "give up":
            assert len(remains.give_up(count)) == min(count, before) == before - len(remains)
        else:
            found = remains.find(name, 0, count)
            remains.take(found)
            assert len(remains) == before - len(found.chunks)
            assert not remains.find(name, 0, count).chunks
            if step == "back":
                remains.put_back(found)
                assert remains.find(name, 0, count) == found
        lying = [chunk for one in NAMES for chunk in remains.find(one, 0, number).chunks.values()]
        assert len(lying) == len(set(lying)) == len(remains)
