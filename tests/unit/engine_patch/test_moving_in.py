"""An engine that starts moves into another's pages, or copies them: real pages of the host driver, a played daemon."""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_patch.common_pages import CommonPages
from engine_patch.region import Region
from native._native import Driver, DriverError, open_driver
from native.client import Chunk
from native.protocol import Kind

CHUNK = 2 << 20
DIGEST = "content:layout"
CALL_S = 5.0


class Kept:
    def put_chunk(self, device: str, chunk: int, fd: int) -> None:
        os.close(fd)

    def drop_chunks(self, device: str, chunks: object) -> None:
        pass


class Played:
    """The daemon's client: gives out pages, and those that another engine has filled with sevens."""

    shares = True

    def __init__(self, driver: Driver, count: int) -> None:
        self.driver = driver
        self.kept = Kept()
        self.numbers, self.created = itertools.count(), itertools.count()
        self.given: set[int] = set()
        self.closed: list[str] = []
        self.theirs = [driver.create(CHUNK) for _ in range(count)]
        for n, handle in enumerate(self.theirs):
            filled = driver.reserve(CHUNK, 0)
            driver.map_many([(filled, handle)])
            ctypes.memset(filled, 7 + n, CHUNK)

    def _chunk(self, handle: int, writable: bool) -> Chunk:
        fd = self.driver.export_handle(handle)
        if not writable:
            fd, first = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY), fd
            os.close(first)
        return Chunk(next(self.numbers), fd, CHUNK)

    def map(self, device: str, kind: Kind, count: int, timeout_s: float, **_: object) -> tuple[Chunk, ...]:
        chunks = tuple(self._chunk(self.driver.create(CHUNK), True) for _ in range(count) if next(self.created) >= 0)
        self.given |= {chunk.id for chunk in chunks}
        return chunks

    def unmap(self, device: str, chunks: list[int], timeout_s: float, **_: object) -> None:
        self.given -= set(chunks)

    def open_share(self, device: str, digest: str, timeout_s: float) -> tuple[Chunk, ...] | None:
        return tuple(self._chunk(handle, False) for handle in self.theirs) if digest == DIGEST else None

    def close_share(self, device: str, digest: str, timeout_s: float) -> None:
        self.closed.append(digest)


class Start:
    """A region whose chunks 0 and 1 the model lies in, of three that were mapped for it."""

    def __init__(self) -> None:
        driver = open_driver("host")
        self.daemon = Played(open_driver("host"), 2)
        client: Any = self.daemon
        self.region = Region(driver, client, "n/0", Kind.WEIGHTS, CHUNK, 0, 8 * CHUNK)
        self.pages = CommonPages(client, client, self.region, allowed=True)
        self.region.map(range(3), CALL_S)
        ctypes.memset(self.region.base, 1, 3 * CHUNK)
        self.live = [(self.region.base, CHUNK + 64), (self.region.base + CHUNK + 4096, 64)]

    def hold(self, digest: str = DIGEST) -> bool:
        return self.pages.hold(digest, (0, 1), self.live, CALL_S)

    def byte(self, at: int) -> int:
        return ctypes.string_at(self.region.base + at, 1)[0]

    @property
    def access(self) -> str:
        """Of the first page."""
        lines = Path("/proc/self/maps").read_text().splitlines()
        return next(line.split()[1] for line in lines if line.startswith(f"{self.region.base:x}-"))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def start() -> Iterator[Start]:
    one = Start()
    before, made = descriptors(), next(one.daemon.created)
    yield one
    assert descriptors() <= before + next(one.daemon.created) - made - 1, "some were left open"


def test_held_pages_take_the_place_of_its_own(start: Start) -> None:
    assert start.hold()
    assert start.byte(0) == 1, "not before it is known what is needed"
    start.region.drop([2], CALL_S)
    start.pages.move_in(CALL_S)
    assert (start.byte(0), start.byte(CHUNK)) == (7, 8)
    assert (start.region.bytes, start.daemon.given) == (0, set())
    assert (start.pages.joined, start.access) == (DIGEST, "r--s")
    start.pages.move_in(CALL_S)  # nothing is held any more
    start.pages.part(CALL_S)
    assert start.daemon.closed == [DIGEST]


def test_where_the_model_grew_the_content_is_copied(start: Start) -> None:
    """Into what was needed when the pages were held, and nowhere else."""
    assert start.hold()
    start.pages.move_in(CALL_S)  # chunk 2 is still there
    assert [start.byte(at) for at in (0, CHUNK, CHUNK + 63)] == [7, 8, 8]
    assert [start.byte(at) for at in (CHUNK + 64, CHUNK + 4096, CHUNK + 4160, 2 * CHUNK)] == [1, 8, 1, 1]
    assert (start.region.bytes, start.pages.joined, start.daemon.closed) == (3 * CHUNK, "", [DIGEST])


def test_where_they_cannot_be_mapped_the_content_is_copied(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def join(indices: object, chunks: object) -> None:
        raise DriverError("no room for mappings")

    assert start.hold()
    start.region.drop([2], CALL_S)
    monkeypatch.setattr(start.region, "join", join)
    start.pages.move_in(CALL_S)
    assert [start.byte(at) for at in (0, CHUNK, CHUNK + 4096)] == [7, 8, 8]
    assert (start.region.indices, start.pages.joined, start.access) == ((0, 1), "", "rw-s")
    assert start.daemon.closed == [DIGEST]


@pytest.mark.parametrize("digest", ["another", DIGEST])
def test_what_nobody_offers_or_has_another_size_is_not_held(start: Start, digest: str) -> None:
    start.daemon.theirs.pop()
    assert not start.hold(digest)
    assert start.daemon.closed == ([DIGEST] if digest == DIGEST else [])
    start.pages.move_in(CALL_S)
    assert start.byte(0) == 1


def test_what_is_held_can_be_let_go_of(start: Start) -> None:
    assert start.hold()
    for _ in range(2):
        start.pages.let_go(CALL_S)
    assert (start.daemon.closed, start.pages.joined) == ([DIGEST], "")
    start.pages.move_in(CALL_S)
    assert start.byte(0) == 1
