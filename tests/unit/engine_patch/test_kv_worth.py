"""Keep or compute again: whichever was measured to be cheaper."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_patch.kv_worth import DOUBT, LEAST_BYTES, LEAST_TOKENS, KvWorth

MIB = 1 << 20


def test_what_nobody_measured_is_kept() -> None:
    worth = KvWorth(40_000)
    assert worth.keep
    worth.prefilled(100_000, 0.001)
    assert worth.keep
    worth = KvWorth(40_000)
    worth.saved(100 * MIB, 100.0)
    assert worth.keep
    assert worth.prefill_s is None


@pytest.mark.parametrize(
    ("gigabytes_a_second", "tokens_a_second", "keep"),
    [(10, 200, True), (25, 10_000, True), (25, 400_000, True), (25, 1_000_000, False), (0.01, 10_000, False)],
)
def test_the_cheaper_way_is_taken(gigabytes_a_second: float, tokens_a_second: float, keep: bool) -> None:
    """40 kB a token, as in the figures of docs/memory.md."""
    worth = KvWorth(40_000)
    worth.prefilled(1000, 1000 / tokens_a_second)
    worth.saved(100 * MIB, 100 * MIB / (gigabytes_a_second * 1e9))
    worth.restored(100 * MIB, 100 * MIB / (gigabytes_a_second * 1e9))
    assert worth.keep is keep


def test_the_choice_follows_what_is_measured_later() -> None:
    worth = KvWorth(40_000)
    worth.restored(100 * MIB, 1.0)
    worth.prefilled(1000, 0.01)
    assert not worth.keep
    for _ in range(20):
        worth.prefilled(1000, 10.0)
    assert worth.keep


def test_short_prompts_and_small_copies_say_nothing() -> None:
    worth = KvWorth(1.0)
    worth.prefilled(LEAST_TOKENS - 1, 5.0)
    worth.prefilled(LEAST_TOKENS, 0.0)
    worth.saved(LEAST_BYTES - 1, 1.0)
    worth.restored(LEAST_BYTES - 1, 1.0)
    assert (worth.prefill_s, worth.keep_s) == (None, None)


@given(
    st.floats(1, 1e6), st.floats(1e6, 1e11), st.floats(1e6, 1e11), st.floats(1, 1e7), st.integers(LEAST_TOKENS, 100_000)
)
def test_it_is_never_the_dearer_way(token_bytes: float, out: float, back: float, rate: float, tokens: int) -> None:
    worth = KvWorth(token_bytes)
    worth.saved(LEAST_BYTES, LEAST_BYTES / out)
    worth.restored(LEAST_BYTES, LEAST_BYTES / back)
    worth.prefilled(tokens, tokens / rate)
    keeping, computing = token_bytes / out + token_bytes / back, 1 / rate
    if keeping < 0.99 * DOUBT * computing:
        assert worth.keep
    if keeping > 1.01 * DOUBT * computing:
        assert not worth.keep
