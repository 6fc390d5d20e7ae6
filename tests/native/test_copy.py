"""Streaming copies: every kernel, any list of ranges, in order, by any number of threads."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from native._native import CopyJob, copy, copy_kernels, cpu_features
from tests.helpers.memory import buffer, read, write

MIB = 1 << 20
NOISE = random.Random(1).randbytes(MIB)


@pytest.fixture(params=copy_kernels())
def kernel(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_the_last_kernel_is_the_one_every_cpu_has() -> None:
    assert copy_kernels()[-1] == "memcpy"
    assert all(feature in " ".join(cpu_features()) for feature in copy_kernels()[:-1])


@pytest.mark.parametrize("length", [1, 63, 64, 4095, 4096, 4097, 65537, MIB - 200])
def test_every_kernel_copies_every_byte_and_no_other(kernel: str, length: int) -> None:
    with buffer(2 * MIB) as source, buffer(2 * MIB) as destination:
        write(source, NOISE)
        for to, start in ((0, 0), (1, 0), (63, 5), (100, 33)):
            write(destination, bytes(2 * MIB))
            assert copy([(destination + to, source + start, length)], 1, [], kernel) >= 0
            assert read(destination, to + length + 64) == bytes(to) + NOISE[start : start + length] + bytes(64)


ENTRIES = st.lists(st.tuples(st.integers(0, 20000), st.integers(0, 300)), max_size=40)
"""Length of each entry, and the gap before it."""


@given(ENTRIES, st.randoms(use_true_random=False), st.integers(1, 3), st.sampled_from(copy_kernels()))
def test_lists_in_any_order_land_where_they_belong(
    layout: list[tuple[int, int]], shuffle: random.Random, threads: int, kernel: str
) -> None:
    with buffer(MIB) as source, buffer(MIB) as destination:
        write(source, NOISE)
        entries, expected, at = [], bytearray(MIB), 0
        for length, gap in layout:
            at += gap
            start = shuffle.randrange(MIB - length)
            entries.append((destination + at, source + start, length))
            expected[at : at + length] = NOISE[start : start + length]
            at += length
        shuffle.shuffle(entries)

        copy(entries, threads, [], kernel)

        assert read(destination, MIB) == bytes(expected)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([(0, 2000, 100), (99, 3000, 100)], "write the same bytes"),
        ([(500, 2000, 100), (0, 3000, 501)], "write the same bytes"),
        ([(0, 50, 100)], "writes bytes that an entry reads"),
        ([(100, 0, 101)], "writes bytes that an entry reads"),
        ([(0, 100, 101)], "writes bytes that an entry reads"),
        ([(0, 2000, 100), (4000, 99, 1)], "writes bytes that an entry reads"),
        ([(0, 2000, 10), (20, 2100, 10), (40, 25, 10)], "writes bytes that an entry reads"),
    ],
)
def test_overlaps_are_refused(entries: list[tuple[int, int, int]], problem: str) -> None:
    with buffer(MIB) as base:
        with pytest.raises(ValueError, match=problem):
            copy([(base + to, base + start, length) for to, start, length in entries])
        with pytest.raises(ValueError, match=problem):
            CopyJob([(base + to, base + start, length) for to, start, length in entries])
        assert read(base, MIB) == bytes(MIB)


def test_neighbours_do_not_overlap() -> None:
    with buffer(MIB) as base:
        write(base + 100, NOISE[:200])
        copy([(base, base + 100, 100), (base + 300, base + 200, 100), (base + 100, base + 100, 0)])
        assert read(base, 100) + read(base + 300, 100) == NOISE[:200]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"threads": 0}, "threads"),
        ({"threads": 2000}, "threads"),
        ({"cpus": [100000]}, "CPU 100000"),
        ({"threads": 2, "cpus": [-1]}, "CPU -1"),
        ({"kernel": "sse9"}, "sse9"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        CopyJob([], **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=problem):
        copy([], **arguments)  # type: ignore[arg-type]


def test_entries_that_wrap_are_refused() -> None:
    with pytest.raises(ValueError, match="wraps"):
        copy([((1 << 64) - 10, 0, 20)])


def test_nothing_to_copy_is_done_at_once() -> None:
    assert copy([]) >= 0
    job = CopyJob([])
    assert (job.wait(timeout_s=60), job.done, job.bytes_total, job.entries_done) == (True, True, 0, 0)


@pytest.mark.parametrize("size", [1, 4 * MIB])
def test_pinned_threads_copy_too_and_leave_the_caller_unpinned(size: int) -> None:
    """Also when a thread has nothing to do and ends before anybody looks at it."""
    allowed = os.sched_getaffinity(0)
    with buffer(4 * MIB) as source, buffer(4 * MIB) as destination:
        write(source, NOISE * 4)
        for _ in range(20):
            copy([(destination, source, size)], 4, sorted(allowed))
        assert read(destination, size) == (NOISE * 4)[:size]
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.parametrize("threads", [1, 3])
def test_a_job_lands_in_order_and_tells_how_far_it_is(threads: int) -> None:
    sizes = [random.Random(i).randrange(1, 3 * MIB) for i in range(20)]
    total = sum(sizes)
    with buffer(total) as source, buffer(total) as destination:
        write(source, (NOISE * (total // MIB + 1))[:total])
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        entries = [(destination + at, source + at, size) for at, size in zip(starts, sizes, strict=True)]

        job = CopyJob(entries, threads)

        for count, (to, start, size) in enumerate(entries, 1):
            assert job.wait(count, 60)
            assert job.entries_done >= count
            assert job.bytes_done >= sum(sizes[:count])
            assert read(to, size) == read(start, size)
        assert job.wait(timeout_s=60)
        assert job.done
        assert (job.bytes_done, job.entries_done, job.bytes_total) == (total, len(sizes), total)
        assert job.seconds == job.seconds > 0
        with pytest.raises(ValueError, match="only 20 entries"):
            job.wait(21)


def test_a_cancelled_job_stops_and_what_it_says_is_done_is_done() -> None:
    size = 64 * MIB
    with buffer(size) as source, buffer(size) as destination:
        for at in range(0, size, MIB):
            write(source + at, NOISE)
        job = CopyJob([(destination + at, source + at, MIB) for at in range(0, size, MIB)], 2)
        job.cancel()
        job.cancel()

        done = job.bytes_done
        assert read(destination, done) == read(source, done)
        assert job.done == (done == size)
        assert job.wait(timeout_s=60) == job.done
        assert job.cancelled or job.done


def test_waiting_ends_when_time_is_up_and_when_the_job_is_dropped() -> None:
    with buffer(64 * MIB) as source, buffer(64 * MIB) as destination:
        job = CopyJob([(destination, source, 64 * MIB)])
        early = job.wait(timeout_s=0)
        assert not early or job.done
        assert job.wait(0, 0)
        del job  # joins: the buffers may go away now


def blocked_signals(thread: Path) -> int | None:
    """Bit mask of a thread's blocked signals; None if it has ended."""
    try:
        lines = (thread / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next(int(line.split()[1], 16) for line in lines if line.startswith("SigBlk:"))


def test_copy_threads_leave_signals_to_the_interpreter() -> None:
    tasks = Path("/proc/self/task")
    with buffer(64 * MIB) as source, buffer(64 * MIB) as destination:
        seen: list[int] = []
        while len(seen) < 2:  # a thread may have ended before it is looked at
            before = set(tasks.iterdir())
            job = CopyJob([(destination, source, 64 * MIB)], 2)
            masks = [blocked_signals(task) for task in set(tasks.iterdir()) - before]
            seen += [mask for mask in masks if mask is not None]
            assert job.wait(timeout_s=60)
    assert all(mask & (1 << signal.SIGINT - 1) and mask & (1 << signal.SIGTERM - 1) for mask in seen)
