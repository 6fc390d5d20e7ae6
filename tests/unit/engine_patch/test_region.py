"""Where a region's arenas lie. What is mapped there is tested with a daemon: tests/integration/daemon."""

from __future__ import annotations

import pytest

from engine_patch.region import Region
from native._native import open_driver
from native.client import Client
from native.protocol import Kind

CHUNK = 2 << 20
SIZE = 8 * CHUNK
AT = 0x3000_0000_0000


@pytest.fixture
def region() -> Region:
    return Region(
        open_driver("host"),
        Client("no daemon is needed", "e", "0" * 32, "worker"),
        "n/0",
        Kind.WEIGHTS,
        CHUNK,
        AT,
        SIZE,
    )


def test_the_first_arena_has_every_byte_that_was_asked_for(region: Region) -> None:
    """A device engine reserves just what it needs."""
    region.arena.grow(SIZE)
    addresses = [region.arena.allocate(CHUNK) for _ in range(SIZE // CHUNK)]
    assert region.spilled_bytes == 0
    assert sorted(addresses) == [region.base + i * CHUNK for i in range(SIZE // CHUNK)]


def test_the_annex_begins_behind_the_first_arena(region: Region) -> None:
    assert region.arenas == (region.arena,)
    annex = region.annex
    assert annex.base == region.base + (1 << 30)
    assert region.first(annex) == (1 << 30) // CHUNK
    assert region.annex is annex
    annex.grow(CHUNK)
    assert annex.allocate(CHUNK) == annex.base
    assert region.blocks() == [(1 << 30, CHUNK)]
