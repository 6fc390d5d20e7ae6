"""Checks of content: CRC-32C by its standard, the content digest by hashlib, the canary by its promise."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from native._native import (
    checked_copies,
    checked_copy,
    crc32c,
    crc32c_bytes,
    crc32c_fold,
    sample_digest,
    sample_digests,
)
from native.digest import LEAF, content_digest
from tests.helpers.memory import buffer, read, write

MIB = 1 << 20
PAGE = 2 * MIB
NOISE = random.Random(2).randbytes(3 * MIB)


def crc(data: bytes, init: int = 0, kernel: str = "") -> int:
    with buffer(max(1, len(data))) as base:
        write(base, data)
        return crc32c(base, len(data), init, kernel)


@pytest.mark.parametrize("kernel", ["", "instruction", "portable"])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (bytes(32), 0x8A9136AA),  # RFC 3720 B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
    ],
)
def test_crc32c_of_the_standard_and_known_texts(kernel: str, data: bytes, expected: int) -> None:
    assert crc(data, kernel=kernel) == expected
    assert crc32c_bytes(data) == expected


@given(st.integers(0, 2000) | st.integers(0, 200_000), st.integers(0, 64), st.integers(0, 2**32 - 1))
def test_the_fast_crc_is_the_plain_one(length: int, start: int, init: int) -> None:
    data = NOISE[start : start + length]
    plain = crc(data, init, "portable")
    assert crc(data, init) == crc(data, init, "instruction") == crc32c_bytes(data, init) == plain


@given(st.lists(st.integers(0, 3000), max_size=6))
def test_sums_of_parts_are_folded_to_that_of_the_whole(lengths: list[int]) -> None:
    parts, at = [], 0
    for length in lengths:
        parts.append((crc(NOISE[at : at + length]), length))
        at += length
    assert crc32c_fold(parts) == crc(NOISE[:at])


@given(st.lists(st.integers(0, 60_000), max_size=5))
def test_crc_goes_on_where_it_stopped(lengths: list[int]) -> None:
    total, at = 0, 0
    for length in lengths:
        total = crc(NOISE[at : at + length], total)
        at += length
    assert total == crc(NOISE[:at])


@given(st.integers(0, 2000) | st.integers(0, 70_000), st.integers(0, 64), st.integers(0, 64), st.integers(0, 2**32 - 1))
def test_a_checked_copy_is_a_copy_and_a_sum(length: int, start: int, to: int, init: int) -> None:
    data = NOISE[start : start + length]
    with buffer(length + 64 + 1) as source, buffer(to + length + 1) as target:
        write(source + start, data)
        write(target, b"\xa5" * (to + length + 1))
        assert checked_copy(target + to, source + start, length, init) == crc(data, init)
        assert read(target, to + length + 1) == b"\xa5" * to + data + b"\xa5"


def test_checked_copies_end_with_the_first_that_is_wrong() -> None:
    with buffer(3 * MIB) as source, buffer(3 * MIB) as target:
        write(source, NOISE)
        write(target, bytes(3 * MIB))
        copies = [(target + n * MIB, source + n * MIB, MIB, crc(NOISE[n * MIB : (n + 1) * MIB])) for n in range(3)]
        assert checked_copies([]) == 0
        assert checked_copies(copies) == 3
        assert read(target, 3 * MIB) == NOISE
        write(target, bytes(3 * MIB))
        write(source + MIB + 5, bytes([NOISE[MIB + 5] ^ 1]))
        assert checked_copies(copies) == 1
        assert read(target, MIB) == NOISE[:MIB]
        assert read(target + 2 * MIB, MIB) == bytes(MIB)


def test_an_unknown_crc_kernel_is_named() -> None:
    with pytest.raises(ValueError, match="magic"):
        crc(b"", kernel="magic")


# The content digest


def expected_digest(data: bytes) -> str:
    leaves = [data[at : at + LEAF] for at in range(0, len(data), LEAF)]
    joined = b"".join(hashlib.sha256(leaf).digest() for leaf in leaves)
    return "sha256-tree:" + hashlib.sha256(joined + len(data).to_bytes(8, "little")).hexdigest()


@given(st.lists(st.tuples(st.integers(0, MIB), st.integers(0, MIB + 5000)), max_size=4), st.integers(1, 3))
def test_content_digest_is_as_documented(ranges: list[tuple[int, int]], threads: int) -> None:
    with buffer(len(NOISE)) as base:
        write(base, NOISE)
        data = b"".join(NOISE[start : start + length] for start, length in ranges)
        assert content_digest([(base + start, length) for start, length in ranges], threads) == expected_digest(data)


def test_content_digest_does_not_depend_on_how_the_bytes_are_cut() -> None:
    with buffer(len(NOISE)) as base:
        write(base, NOISE)
        pieces = [(base, 1), (base + 1, MIB + 7), (base + MIB + 8, 0), (base + MIB + 8, len(NOISE) - MIB - 8)]
        assert content_digest(pieces) == content_digest([(base, len(NOISE))], 2)


def test_content_digest_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="negative"):
        content_digest([(0, -1)])
    with pytest.raises(ValueError, match="max_workers"):
        content_digest([], 0)


# The canary

RANGES = st.lists(st.tuples(st.integers(0, PAGE), st.integers(1, 3 * PAGE)), min_size=1, max_size=3)
"""Gap before each range, and its length."""


@given(RANGES, st.data())
def test_any_page_that_was_not_restored_is_noticed(layout: list[tuple[int, int]], data: st.DataObject) -> None:
    with buffer(16 * PAGE) as memory:
        base = (memory + PAGE - 1) // PAGE * PAGE
        ranges, at = [], base
        for gap, length in layout:
            ranges.append((at + gap, length))
            at += gap + length
        touched = sorted(
            {page for start, size in ranges for page in range(start // PAGE, (start + size - 1) // PAGE + 1)}
        )
        for page in touched:
            write(page * PAGE, NOISE[:PAGE])
        right = sample_digest(ranges)

        missed = data.draw(st.sampled_from(touched)) * PAGE
        write(missed, NOISE[MIB : MIB + PAGE])

        assert sample_digest(ranges) != right
        write(missed, NOISE[:PAGE])
        assert sample_digest(ranges) == right


def test_the_canary_depends_on_content_not_on_addresses() -> None:
    with buffer(5 * MIB) as one, buffer(5 * MIB) as other:
        write(one + 4096, NOISE)
        write(other + 40, NOISE)
        cut = [(0, MIB), (MIB, 100), (MIB + 100, len(NOISE) - MIB - 100)]
        here = sample_digest([(one + 4096 + start, length) for start, length in cut])
        assert here == sample_digest([(other + 40 + start, length) for start, length in cut])
        assert here != sample_digest([(one + 4096, len(NOISE))])
        assert here != sample_digest([(other + 40 + start, length) for start, length in reversed(cut)])


def test_many_ranges_of_one_length_have_the_digests_of_each() -> None:
    with buffer(4 * MIB) as base:
        write(base, NOISE)
        starts = [base, base + MIB + 40, base]
        assert sample_digests(starts, MIB) == [sample_digest([(start, MIB)]) for start in starts]
        assert sample_digests([], MIB) == []


@pytest.mark.parametrize("length", [1, 63, 64, 65, 262143, 262144, 262145])
def test_the_first_and_last_byte_of_a_range_count(length: int) -> None:
    with buffer(MIB) as base:
        write(base, NOISE[:length])
        right = sample_digest([(base, length)])
        for at in (0, length - 1):
            write(base + at, bytes([NOISE[at] ^ 1]))
            assert sample_digest([(base, length)]) != right
            write(base + at, NOISE[at : at + 1])
        write(base + length, b"beyond the end does not count")
        assert sample_digest([(base, length)]) == right


def test_content_that_repeats_with_the_stride_does_not_hide() -> None:
    """Zeros where each stride begins, as padded rows have them: samples at the same place of each would see nothing."""
    stride, padding = 262144, 4096
    with buffer(PAGE) as base:
        digests = set()
        for content in (NOISE[:PAGE], NOISE[MIB : MIB + PAGE]):
            write(base, content)
            for at in range(0, PAGE, stride):
                write(base + at, bytes(padding))
            write(base + PAGE - padding, bytes(padding))
            digests.add(sample_digest([(base, PAGE)], stride))
        assert len(digests) == 2


def test_wider_and_denser_samples_notice_more() -> None:
    with buffer(MIB) as base:
        write(base, NOISE[:MIB])
        everything = sample_digest([(base, MIB)], 4096, 4096)
        write(base + 777_777, bytes([read(base + 777_777, 1)[0] ^ 1]))
        assert sample_digest([(base, MIB)], 4096, 4096) != everything


@pytest.mark.parametrize(("stride", "width"), [(2 * MIB, 64), (4096, 0), (64, 65), (0, 0)])
def test_a_canary_that_could_miss_a_page_is_refused(stride: int, width: int) -> None:
    with pytest.raises(ValueError, match="width <= stride"):
        sample_digest([], stride, width)
