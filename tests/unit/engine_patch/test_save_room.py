"""Host memory for saved KV: no more than is asked for, and the daemon knows first."""

from __future__ import annotations

import ctypes

import pytest

from engine_patch.host_memory import SaveRoom

GRAIN = 2 << 20


def test_it_is_as_large_as_what_was_asked_for_and_grows_only_for_more() -> None:
    told: list[int] = []
    room = SaveRoom(told.append)
    assert room.size == 0
    first = room.fit(1)
    assert (told, room.size) == ([GRAIN], GRAIN)
    assert room.fit(GRAIN) is first
    larger = room.fit(GRAIN + 1)
    ctypes.memset(larger.address, 1, larger.size)
    assert (told, room.size, first.size) == ([GRAIN, 2 * GRAIN], 2 * GRAIN, 0)


def test_each_memory_is_locked_while_it_is_there() -> None:
    seen: list[tuple[str, int]] = []
    room = SaveRoom(lambda size: None, lambda m: seen.append(("lock", m.size)), lambda m: seen.append(("free", m.size)))
    room.fit(1)
    room.fit(2)
    room.fit(GRAIN + 1)
    assert seen == [("lock", GRAIN), ("free", GRAIN), ("lock", 2 * GRAIN)]


def test_nothing_asked_for_is_still_a_place() -> None:
    assert SaveRoom(lambda size: None).fit(0).size == GRAIN


def test_where_the_budget_is_spent_what_there_was_stays() -> None:
    def report(size: int) -> None:
        if size > GRAIN:
            raise RuntimeError("no space")

    room = SaveRoom(report)
    first = room.fit(GRAIN)
    with pytest.raises(RuntimeError):
        room.fit(2 * GRAIN)
    assert room.fit(GRAIN) is first
    ctypes.memset(first.address, 1, first.size)
