"""Device pages of one kind at fixed addresses: a reservation, one or two arenas in it, and the chunks mapped there."""

from __future__ import annotations

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
        share_id = self._driver.share_id() if self._driver.sharing == "handle" else 0
        chunks = self._client.map(
            self.device, self.kind, len(indices), timeout_s, share_id=share_id, overwritten=overwritten
        )
        handles: list[int] = []
        try:
            handles.extend(self._driver.import_handle(chunk.shareable, chunk.size) for chunk in chunks)
            self._driver.map_many([(self._address(i), h) for i, h in zip(indices, handles, strict=True)])
        except DriverError:
            for chunk in chunks:
                chunk.close()
            self._give_back(chunks, handles, timeout_s)
            raise
        for chunk in chunks:
            if chunk.fd >= 0:
                self._client.kept.put_chunk(self.device, chunk.id, chunk.fd)
        self._mapped.update((i, (chunk.id, handle)) for i, chunk, handle in zip(indices, chunks, handles, strict=True))

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
        self._mapped.update((i, (chunk.id, handle)) for i, chunk, handle in zip(indices, chunks, handles, strict=True))
        self._joined = True

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
        going = [i for i in indices if i in self._mapped]
        self._owed += self._unmap(going)
        self._client.kept.drop_chunks(self.device, self._owed)
        self._client.unmap(self.device, self._owed, timeout_s)
        self._owed.clear()

    def _unmap(self, indices: Sequence[int]) -> list[int]:
        """Their ids."""
        self._driver.unmap_many([self._address(i) for i in indices])
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

    def _address(self, index: int) -> int:
        return self.base + index * self.chunk

    def _give_back(self, chunks: Sequence[Chunk], handles: Sequence[int], timeout_s: float) -> None:
        for handle in handles:
            self._driver.destroy(handle)
        self._owed += [chunk.id for chunk in chunks]
        self._client.unmap(self.device, self._owed, timeout_s)
        self._owed.clear()
