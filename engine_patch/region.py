"""Device pages of one kind at fixed addresses: a reservation, one or two arenas in it, and the chunks mapped there."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from engine_patch.kv_blocks import coalesce, gaps
from native._native import Arena, Driver, DriverError
from native.client import Chunk, Client
from native.protocol import Kind

_HINTED = 1 << 30
"""Reservations are asked for at multiples of it (`Driver.reserve`)."""
Range = tuple[int, int]
"""Address and length, in bytes."""


class Region:
    """Chunk i of the region lies at `base + i * chunk`, whenever it is mapped. Not thread-safe.

    Addresses are the same in every life of the memory, so pointers into it stay good; between `drop` and `map` a touch
    faults. Each chunk's descriptor is kept while it is mapped, for a restarted daemon (`native.kept`).
    """

    def __init__(
        self, driver: Driver, client: Client, device: str, kind: Kind, chunk: int, hint: int, size: int
    ) -> None:
        """Reserve `size` bytes (whole chunks) at `hint`. `device`: the daemon's name of it; `chunk`: its chunk size."""
        self._driver = driver
        self._client = client
        self.device = device
        self.kind = kind
        self.chunk = chunk
        self.base = driver.reserve(size, hint)
        self._size = size
        self.arena = Arena(self.base, size, chunk)
        self._annex: Arena | None = None
        self._mapped: dict[int, tuple[int, int]] = {}
        self._owed: list[int] = []
        self._joined = False
        self.moves = 0
        """How often chunks came or went. Ids do not tell: the daemon gives the same ones again."""

    @property
    def indices(self) -> tuple[int, ...]:
        """Chunks that are mapped."""
        return tuple(sorted(self._mapped))

    @property
    def chunks(self) -> tuple[int, ...]:
        """The daemon's ids of the chunks that are mapped, by index."""
        return tuple(self._mapped[i][0] for i in self.indices)

    @property
    def bytes(self) -> int:
        """Of chunks that were given to this process; not of those it shares (`join`)."""
        return 0 if self._joined else len(self._mapped) * self.chunk

    @property
    def annex(self) -> Arena:
        """A second arena, as large, at the addresses behind the first: what lies there shares no chunk with the rest.
        Raises DriverError where they are taken."""
        if self._annex is None:
            behind = -(-(self.base + self._size) // _HINTED) * _HINTED
            self._annex = Arena(self._driver.reserve(self._size, behind), self._size, self.chunk)
        return self._annex

    def first(self, arena: Arena) -> int:
        """Index of this arena's first chunk."""
        return (arena.base - self.base) // self.chunk

    def populate(self, arena: Arena, size: int, timeout_s: float) -> None:
        """Map zeroed pages for the first `size` bytes of one of the two arenas. Raises as `map`."""
        start, end = self.first(arena) + arena.capacity // self.chunk, self.first(arena) - -size // self.chunk
        if start < end:
            self.map(range(start, end), timeout_s)
            arena.grow((end - self.first(arena)) * self.chunk)

    @property
    def arenas(self) -> tuple[Arena, ...]:
        return (self.arena,) if self._annex is None else (self.arena, self._annex)

    def blocks(self) -> list[Range]:
        """Live blocks of both arenas: offset from `base` and length, by offset."""
        return [(arena.base - self.base + at, length) for arena in self.arenas for at, length in arena.blocks()]

    @property
    def spilled_bytes(self) -> int:
        return sum(arena.spilled_bytes for arena in self.arenas)

    @property
    def live_bytes(self) -> int:
        return sum(arena.live_bytes for arena in self.arenas)

    def ids(self, indices: Iterable[int]) -> list[int]:
        """What the daemon calls these chunks."""
        return [self._mapped[i][0] for i in indices]

    def map(self, indices: Sequence[int], timeout_s: float, *, overwritten: bool = False) -> None:
        """Get a chunk for each index and map it there: all or none. They are zero, unless the caller says that it
        overwrites them whole before anything reads them.

        Raises:
            DaemonRefused: no operation is open, no space.
            DaemonUnavailable: the daemon is away or silent.
            DriverError: the driver could not map.
        """
        self._place(indices, self._ask(len(indices), timeout_s, overwritten), timeout_s)

    def _ask(
        self, count: int, timeout_s: float, overwritten: bool, kv: int = 0, content: str = ""
    ) -> tuple[Chunk, ...]:
        share_id = self._driver.share_id() if self._driver.sharing == "handle" else 0
        return self._client.map(
            self.device,
            self.kind,
            count,
            timeout_s,
            share_id=share_id,
            overwritten=overwritten,
            kv=kv,
            content=content,
        )

    def _place(self, indices: Sequence[int], chunks: Sequence[Chunk], timeout_s: float) -> None:
        handles: list[int] = []
        try:
            handles.extend(self._driver.import_handle(chunk.shareable, chunk.size) for chunk in chunks)
            self._driver.map_many([(self._address(i), h) for i, h in zip(indices, handles, strict=True)])
        except DriverError:
            self._return(chunks, handles, timeout_s)
            raise
        for chunk in chunks:
            if chunk.fd >= 0:
                self._client.kept.put_chunk(self.device, chunk.id, chunk.fd)
        self._now_mapped(indices, chunks, handles)

    def join(self, indices: Sequence[int], chunks: Sequence[Chunk]) -> None:
        """Map chunks that another process holds read-only, one for each index, where nothing is mapped: all or none.
        Their descriptors stay the caller's; none is kept, because a restarted daemon could not give such a one on.

        Raises:
            DriverError: the driver could not map.
        """
        handles: list[int] = []
        try:
            handles.extend(self._driver.import_handle(chunk.shareable, chunk.size) for chunk in chunks)
            pairs = [(self._address(i), handle) for i, handle in zip(indices, handles, strict=True)]
            self._driver.map_many(pairs, writable=False)
        except DriverError:
            for handle in handles:
                self._driver.destroy(handle)
            raise
        self._now_mapped(indices, chunks, handles)
        self._joined = True

    def _now_mapped(self, indices: Sequence[int], chunks: Sequence[Chunk], handles: Sequence[int]) -> None:
        self._mapped.update((i, (chunk.id, handle)) for i, chunk, handle in zip(indices, chunks, handles, strict=True))
        self.moves += 1

    def part(self) -> None:
        """Unmap what `join` mapped. Idempotent."""
        if self._joined:
            self._unmap(self.indices)
            self._joined = False

    def drop(self, indices: Iterable[int], timeout_s: float) -> None:
        """Unmap these chunks and give them back to the daemon; what is not mapped is passed over.

        Raises:
            DaemonUnavailable: the daemon is away or silent: unmapped here, and told to the daemon by the next `drop`.
        """
        self._retire(indices)
        _give_back((self,), timeout_s)

    def _retire(self, indices: Iterable[int]) -> None:
        """Unmap them here; `_give_back` tells the daemon."""
        self._owed += self._unmap([i for i in indices if i in self._mapped])
        self._client.kept.drop_chunks(self.device, self._owed)

    def _unmap(self, indices: Sequence[int]) -> list[int]:
        """Their ids."""
        self._driver.unmap_many([self._address(i) for i in indices])
        self.moves += 1
        going = [self._mapped.pop(i) for i in indices]
        for _, handle in going:
            self._driver.destroy(handle)
        return [chunk for chunk, _ in going]

    def ranges(self, indices: Iterable[int]) -> list[Range]:
        """Where these chunks lie, neighbours merged, by address."""
        runs: list[Range] = []
        for i in sorted(indices):
            address = self._address(i)
            if runs and runs[-1][0] + runs[-1][1] == address:
                runs[-1] = (runs[-1][0], runs[-1][1] + self.chunk)
            else:
                runs.append((address, self.chunk))
        return runs

    def place(self, address: int, length: int) -> int | None:
        """Where these bytes lie when the mapped chunks are laid end to end, as in a view of `chunks`; None: not in one
        piece, or not here."""
        first, within = divmod(address - self.base, self.chunk)
        last = (address + max(length, 1) - 1 - self.base) // self.chunk
        indices = self.indices
        slot = bisect_left(indices, first)
        whole = indices[slot : slot + last - first + 1] == tuple(range(first, last + 1))
        return slot * self.chunk + within if whole else None

    def holes(self, live: Sequence[Range]) -> list[Range]:
        """What none of the blocks `live` (offset and length, by offset) covers of the chunks that are mapped, in pieces
        of a chunk at most, by address."""
        indices, holes = self.indices, []
        for start, length in gaps(coalesce(live), (max(indices, default=-1) + 1) * self.chunk):
            first = bisect_left(indices, start // self.chunk)
            last = bisect_left(indices, -(-(start + length) // self.chunk))
            for i in indices[first:last]:
                low, high = max(start, i * self.chunk), min(start + length, (i + 1) * self.chunk)
                holes.append((self.base + low, high - low))
        return holes

    def touched(self, live: Sequence[Range]) -> tuple[int, ...]:
        """Chunks that some of the blocks `live` (offset and length) lies in, whether they are mapped or not."""
        ends = [(at // self.chunk, -(-(at + size) // self.chunk)) for at, size in live]
        return tuple(sorted({i for first, end in ends for i in range(first, end)}))

    def _address(self, index: int) -> int:
        return self.base + index * self.chunk

    def _return(self, chunks: Sequence[Chunk], handles: Sequence[int], timeout_s: float) -> None:
        """What came and could not be placed."""
        for chunk in chunks:
            chunk.close()
        for handle in handles:
            self._driver.destroy(handle)
        self._owed += [chunk.id for chunk in chunks]
        _give_back((self,), timeout_s)


def layout(indices: tuple[int, ...]) -> str:
    """Names the chunks of a region, as a part of the digest of what is in them."""
    return hashlib.sha256(repr(indices).encode()).hexdigest()[:16]


def map_both(
    weights: Region, kv: Region, at: tuple[Sequence[int], Sequence[int]], timeout_s: float, left: str = ""
) -> frozenset[int]:
    """For a restore: a chunk for each index of `at` in the two regions of one device, in one call of the daemon as far
    as they fit into it. Weights are overwritten whole, KV is zero. Returns the indices of weights that still hold what
    `drop_both` left there by that name. Raises as `Region.map`; some may be mapped then."""
    count = len(at[0])
    chunks = weights._ask(count, timeout_s, True, len(at[1]), left)
    try:
        weights._place(at[0], chunks[:count], timeout_s)
    except DriverError:
        kv._return(chunks[count:], (), timeout_s)
        raise
    kv._place(at[1], chunks[count:], timeout_s)
    return frozenset(i for i, chunk in zip(at[0], chunks[:count], strict=True) if chunk.still)


def drop_both(weights: Region, kv: Region, timeout_s: float, left: str = "") -> None:
    """Everything of two regions of one device, in one call of the daemon; `left`: a name that nobody else can guess, by
    which `map_both` finds the weights, all of them, while nobody needs their chunks. Raises as `Region.drop`."""
    holding = len(weights.indices) if not weights._owed else 0
    for region in (weights, kv):
        region._retire(region.indices)
    _give_back((weights, kv), timeout_s, left, holding)


def _give_back(regions: Sequence[Region], timeout_s: float, left: str = "", holding: int = 0) -> None:
    first = regions[0]
    owed = [chunk for region in regions for chunk in region._owed]
    first._client.unmap(first.device, owed, timeout_s, content=left, holding=holding)
    for region in regions:
        region._owed.clear()
