"""The rolling window of shared layers: over all starts, lengths, prefetches and group sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_patch.sharded_linear.series import Candidate, plan
from engine_patch.sharded_linear.window import Window


@st.composite
def windows(draw: st.DrawFn) -> Window:
    group = draw(st.integers(1, 9))
    return Window(
        length=draw(st.integers(1, 40)),
        group=group,
        prefetch=draw(st.integers(0, 45)),
        first=draw(st.integers(0, group - 1)),
    )


@given(windows(), st.integers(0, 200), st.integers(1, 4))
def test_every_step_finds_its_own_layer_and_nothing_is_overwritten_before_it_is_used(
    window: Window, begin: int, passes: int
) -> None:
    """On every rank. A window that was emptied (a sleep) is filled anew at whatever step comes next."""
    for rank in range(window.group):
        _walk(window, rank, begin, passes)
    assert window.position(begin) == window.position(begin + passes * window.length)


def _walk(window: Window, rank: int, begin: int, passes: int) -> None:
    count = window.buffers(rank)
    buffers: dict[int, int] = {}

    def foreign(step: int) -> bool:
        return window.owner(window.position(step)) != rank

    def ask(step: int) -> None:
        if foreign(step):
            buffers[window.turn(step, rank) % count] = step

    for step in window.opening(begin):
        ask(step)
    for step in range(begin, begin + passes * window.length):
        ask(window.asked_by(step))
        if foreign(step):
            assert buffers[window.turn(step, rank) % count] == step


@given(windows())
def test_a_rank_has_as_many_buffers_as_it_needs_and_not_one_more(window: Window) -> None:
    """What the others own of as many layers in a row as are under way, wherever that begins."""
    for rank in range(window.group):
        owners = [window.owner(window.position(step)) for step in range(2 * window.length)]
        rows = [owners[step : step + window.ahead + 1] for step in range(window.length)]
        assert window.buffers(rank) == max(sum(owner != rank for owner in row) for row in rows)


def test_two_ranks_that_own_every_other_layer_have_half_a_window_each() -> None:
    assert [Window(12, 2, prefetch).buffers(1) for prefetch in (0, 1, 2, 3, 5, 11)] == [1, 1, 2, 2, 3, 6]
    assert Window(12, 2).resident(0) == 6 + 2
    assert Window(13, 2, 3).buffers(1) == 3  # the last layer and the first are of one rank
    assert Window(61, 8, 3).buffers(0) == 4
    assert [Window(1, 2, 1).buffers(rank) for rank in (0, 1)] == [0, 1]


@given(windows(), st.integers(0, 200), st.integers(1, 3))
def test_each_step_is_asked_for_once_in_order_and_as_early_as_was_wished(
    window: Window, begin: int, passes: int
) -> None:
    """The order is what ranks are matched by: it depends on nothing but the step."""
    asked = list(window.opening(begin))
    for step in range(begin, begin + passes * window.length):
        asked.append(window.asked_by(step))
        assert asked[-1] - step == min(window.prefetch, window.length - 1)
    assert asked == list(range(begin, begin + len(asked)))


@given(windows())
def test_layers_are_spread_evenly(window: Window) -> None:
    owned = [window.owned(rank) for rank in range(window.group)]
    assert sorted(position for each in owned for position in each) == list(range(window.length))
    assert {len(each) for each in owned} <= {window.length // window.group, -(-window.length // window.group)}
    worst = -(-window.length // window.group) + window.prefetch + 1
    assert all(window.resident(rank) <= worst for rank in range(window.group))


@given(st.lists(st.integers(2, 20), min_size=1, max_size=6), st.integers(2, 8), st.integers(0, 90))
def test_several_series_are_spread_evenly_together_wherever_a_stage_starts(
    lengths: list[int], group: int, start: int
) -> None:
    """A pipeline stage has layers `start` and up: only their order counts."""
    names = [
        Candidate(f"model.layers.{start + n}.kind{which}", f"form{which}")
        for which, length in enumerate(lengths)
        for n in range(length)
    ]
    planned = plan(names, ["kind*"], group, 1)
    held = [0] * group
    for series in planned:
        assert list(series.layers) == [one.name for one in names if one.name in series.layers]
        for layer in series.layers:
            held[series.owner(layer)] += 1
    assert sum(held) == sum(lengths)
    assert max(held) - min(held) <= 1


def test_the_cases_that_upstream_got_wrong() -> None:
    """vllm-ascend#9622: 58 layers from 3 on, 30 from 31 on; asked for is always the next but `prefetch`."""
    for start, length in ((3, 58), (31, 30), (0, 61), (20, 20)):
        [series] = plan([Candidate(f"model.layers.{start + n}.o_proj", "f") for n in range(length)], ["o_proj"], 4, 1)
        for step in range(2 * length):
            asked = series.layers[series.window.position(series.window.asked_by(step))]
            assert asked == f"model.layers.{start + (step + 1) % length}.o_proj"


@pytest.mark.parametrize(
    "numbers",
    [
        {"length": 0, "group": 1},
        {"length": 1, "group": 0},
        {"length": 1, "group": 1, "prefetch": -1},
        {"length": 1, "group": 2, "first": 2},
    ],
)
def test_no_window_of_such_numbers(numbers: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="no window"):
        Window(**numbers)
