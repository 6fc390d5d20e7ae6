"""The arena allocator against a model of one byte a page, and what it refuses."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from native._native import Arena

PAGE = 4096
CHUNK = 16 * PAGE
BASE = 0x2000_0000_0000
RESERVED = 8 * CHUNK
"""The arena touches no memory, so these addresses need not be mapped."""


class ArenaMachine(RuleBasedStateMachine):
    """The model is a list with the owner of each mapped page (0: free); first fit is a search from its start."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(BASE, RESERVED, CHUNK)
        self.pages: list[int] = []
        self.blocks: dict[int, int] = {}
        self.peak = 0

    def first_fit(self, count: int, alignment: int) -> int | None:
        for start in range(len(self.pages) - count + 1):
            fits = (BASE // PAGE + start) % (max(alignment, PAGE) // PAGE) == 0
            if fits and not any(self.pages[start : start + count]):
                return start
        return None

    @rule(chunks=st.integers(0, 3))
    def grow(self, chunks: int) -> None:
        capacity = min(self.arena.capacity + chunks * CHUNK, RESERVED)
        self.arena.grow(capacity)
        self.pages += [0] * (capacity // PAGE - len(self.pages))

    @rule()
    def trim(self) -> None:
        capacity = self.arena.trim()
        used = max((at for at, owner in enumerate(self.pages) if owner), default=-1) + 1
        assert capacity == -(-used * PAGE // CHUNK) * CHUNK
        del self.pages[capacity // PAGE :]

    @rule(size=st.integers(1, 12 * PAGE), alignment=st.sampled_from([1, 64, PAGE, 4 * PAGE, CHUNK]))
    def allocate(self, size: int, alignment: int) -> None:
        count = -(-size // PAGE)
        start = self.first_fit(count, alignment)
        if start is None:
            with pytest.raises(MemoryError):
                self.arena.allocate(size, alignment)
            return
        assert self.arena.allocate(size, alignment) == BASE + start * PAGE
        self.pages[start : start + count] = [1] * count
        self.blocks[start] = count
        self.peak = max(self.peak, sum(self.pages) * PAGE)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        start = data.draw(st.sampled_from(sorted(self.blocks)))
        self.arena.free(BASE + start * PAGE)
        count = self.blocks.pop(start)
        self.pages[start : start + count] = [0] * count

    @rule(page=st.integers(-2, 140), within=st.integers(0, PAGE - 1))
    def free_what_is_no_block(self, page: int, within: int) -> None:
        if page in self.blocks and not within:
            return
        with pytest.raises(ValueError, match="no live block"):
            self.arena.free(BASE + page * PAGE + within)

    @invariant()
    def agrees(self) -> None:
        live = sorted(self.blocks.items())
        assert self.arena.capacity == len(self.pages) * PAGE
        assert self.arena.blocks() == [(start * PAGE, count * PAGE) for start, count in live]
        assert self.arena.live_bytes == sum(self.pages) * PAGE
        assert self.arena.live_blocks == len(live)
        assert self.arena.peak_bytes == self.peak
        assert self.arena.top == max((start + count for start, count in live), default=0) * PAGE
        assert self.arena.chunks_in_use() == [
            index for index in range(RESERVED // CHUNK) if any(self.pages[index * 16 : index * 16 + 16])
        ]
        extents = self.arena.extents()
        assert [page for at, size in extents for page in range(at // PAGE, (at + size) // PAGE)] == [
            page for page, owner in enumerate(self.pages) if owner
        ]
        assert all(at + size < after for (at, size), (after, _) in pairwise(extents))


ArenaMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestArenaAgainstModel = ArenaMachine.TestCase


@pytest.mark.parametrize(
    "arguments",
    [
        (BASE + 1, RESERVED, CHUNK),
        (0, RESERVED, CHUNK),
        (BASE, 0, CHUNK),
        (BASE, RESERVED + PAGE, CHUNK),
        (BASE, RESERVED, 0),
        (BASE, RESERVED, 100),
        ((1 << 64) - CHUNK, RESERVED, CHUNK),
    ],
)
def test_an_arena_is_made_of_whole_chunks(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Arena(*arguments)


@pytest.mark.parametrize("capacity", [0, CHUNK, 2 * CHUNK + PAGE, RESERVED + CHUNK])
def test_growing_is_upwards_by_chunks_within_the_reservation(capacity: int) -> None:
    arena = Arena(BASE, RESERVED, CHUNK, 2 * CHUNK)
    with pytest.raises(ValueError, match="grows in chunks"):
        arena.grow(capacity)
    assert arena.capacity == 2 * CHUNK


@pytest.mark.parametrize(("size", "alignment"), [(0, PAGE), (PAGE, 0), (PAGE, 3)])
def test_bad_blocks_are_refused(size: int, alignment: int) -> None:
    with pytest.raises(ValueError, match="positive size"):
        Arena(BASE, RESERVED, CHUNK, RESERVED).allocate(size, alignment)


@pytest.mark.parametrize("size", [RESERVED + 1, (1 << 64) - 1])
def test_a_block_that_can_never_fit_is_a_memory_error(size: int) -> None:
    with pytest.raises(MemoryError):
        Arena(BASE, RESERVED, CHUNK, RESERVED).allocate(size)


def test_threads_share_an_arena() -> None:
    arena = Arena(BASE, 1024 * CHUNK, CHUNK, 1024 * CHUNK)
    start = threading.Barrier(4)

    def worker(number: int) -> list[int]:
        start.wait()
        kept = []
        for i in range(2000):
            kept.append(arena.allocate((number + i % 5 + 1) * PAGE))
            if i % 3:
                arena.free(kept.pop(i % len(kept)))
        return kept

    with ThreadPoolExecutor(4) as pool:
        kept = [address for future in [pool.submit(worker, n) for n in range(4)] for address in future.result(60)]

    assert len(kept) == len(set(kept)) == arena.live_blocks
    blocks = arena.blocks()
    assert all(at + size <= after for (at, size), (after, _) in pairwise(blocks))
    for address in kept:
        arena.free(address)
    assert (arena.live_bytes, arena.top, arena.trim()) == (0, 0, 0)
