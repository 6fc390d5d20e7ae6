from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.sizes import parse_duration, parse_size, show_duration, show_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), (7, 7), ("64MiB", 64 << 20), ("512M", 512 << 20), ("2 gib", 2 << 30), ("1.5G", 3 << 29), ("1GB", 10**9)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1.5", "1e9", "2 bananas", "64MiBs", "１G", "1_000"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="is not a"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m", 300), ("1h30m", 5400), ("500ms", 0.5), (2, 2), (0.5, 0.5), ("90", 90), ("1d", 86400)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "-5s", "5 minutes", "soon", "1h 30m"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@given(st.integers(0, 1 << 50))
def test_a_size_in_bytes_is_itself(size):
    assert parse_size(size) == parse_size(f"{size}B") == size


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0 B"), (999, "999 B"), (64 << 20, "64 MiB"), (3 << 29, "1.5 GiB"), (2 << 40, "2.0 TiB")]
)
def test_sizes_are_shown_in_three_digits(size, shown):
    assert show_size(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0123, "12 ms"), (12.34, "12.3 s"), (59.99, "1m 00s"), (302, "5m 02s"), (7500, "2h 05m")],
)
def test_durations_are_shown_short(seconds, shown):
    assert show_duration(seconds) == shown
