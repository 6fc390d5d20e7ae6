"""How many graphs a budget of streams has room for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.errors import ConfigError
from engine_patch.stream_budget import sizes_within, streams_of

SIZES = [1, 2, 4, *range(8, 513, 8)]


def test_an_8b_model_beside_two_others() -> None:
    """36 layers, 600 of 1800 streams: 15 graphs."""
    fewer = sizes_within(600, SIZES, 36, ranks=1)
    assert (len(fewer), fewer[0], fewer[-1]) == (15, 1, 512)
    assert len(sizes_within(600, SIZES, 36, ranks=2)) == (600 - 2 * 40) // (37 * 3)


@given(st.integers(100, 5000), st.integers(1, 80), st.integers(1, 8), st.integers(1, len(SIZES)))
def test_the_budget_is_kept_and_used(budget: int, layers: int, ranks: int, count: int) -> None:
    sizes = SIZES[:count]
    if streams_of(1, layers, ranks=ranks) > budget:
        with pytest.raises(ConfigError, match="--enforce-eager"):
            sizes_within(budget, sizes, layers, ranks=ranks)
        return
    fewer = sizes_within(budget, sizes, layers, ranks=ranks)
    assert fewer == sorted(set(fewer))
    assert set(fewer) <= set(sizes)
    assert fewer[0] == sizes[0]
    assert streams_of(len(fewer), layers, ranks=ranks) <= budget
    if len(fewer) < len(sizes):
        assert streams_of(len(fewer) + 1, layers, ranks=ranks) > budget
    else:
        assert fewer == list(sizes)


def test_without_room_for_one_graph_it_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="takes 77"):
        sizes_within(60, SIZES, 36, ranks=1)
