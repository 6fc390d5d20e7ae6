"""Which chunk of a device belongs to whom. PURE book-keeping: no descriptor, no driver, no clock.

A chunk is one physical piece of device memory, the unit of mapping and of sharing. The pool creates all its chunks at
start and never frees one on the wake path: they only change hands. A free chunk is *blank* (zero), *soiled* (it holds
what its last owner left), being wiped, or *remains* of a content that has a name (`native.remains`). Who takes chunks
gets blank ones, unless it overwrites them whole, or comes back for what they hold.

Invariant (I4): chunks that are free, held, or held since before a restart of the daemon ("foreign": their pages live on
in their holder, the pool has no handle of them) never exceed `capacity` bytes together. What is missing to capacity is
`debt`: chunks the daemon has to create. Ids are never used twice: the daemon's generation is in their upper bits.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence, Set

import msgspec

from native.fences import Holder
from native.protocol import Kind
from native.remains import NOTHING, Found, Remains

GENERATION_BITS = 24
"""Chunks a generation can number: 2^24 of 2 MiB are 32 TiB."""


class Owner(msgspec.Struct, frozen=True, order=True):
    """A process that holds pages: its engine and the daemon's number for it (unique in the daemon's life)."""

    holder: Holder
    process: int


class Extent(msgspec.Struct, frozen=True):
    """A run of chunks `first … first + count - 1` that one `map` call gave, of `chunk` bytes each."""

    kind: Kind
    ticket: int
    first: int
    count: int
    chunk: int

    @property
    def bytes(self) -> int:
        return self.count * self.chunk


class _Held(msgspec.Struct, frozen=True):
    kind: Kind
    ticket: int
    chunk: int


class Shortage(Exception):
    """The device's capacity, or what the holder was granted, would be exceeded."""


class Pending(Exception):
    """There is room, but its chunks are not populated yet: ask again after `grow`."""


class Soiled(Pending):
    """There is room, but its chunks hold what others left: ask again when they are wiped."""


class NotYours(Exception):
    """A chunk named in a call belongs to another process."""


class Pool:
    """Chunk accounting of one device. `capacity` is rounded down to whole chunks."""

    def __init__(self, capacity: int, chunk: int, generation: int) -> None:
        self.chunk = chunk
        self.capacity = capacity // chunk * chunk
        self._first = generation << GENERATION_BITS
        self._created = 0
        self._blank: list[int] = []
        self._soiled: list[int] = []
        self._wiping: set[int] = set()
        self._remains = Remains()
        self._most_kv = 0
        self._held: dict[Owner, dict[int, _Held]] = {}
        self._owner: dict[int, Owner] = {}
        self._foreign: set[int] = set()

    @property
    def debt(self) -> int:
        """Chunks that must be created so that free and held bytes reach capacity."""
        return max(0, (self.capacity - self.charged) // self.chunk - self._free)

    @property
    def charged(self) -> int:
        """Bytes held by anybody, from before a restart included."""
        return sum(held.chunk for chunks in self._held.values() for held in chunks.values())

    @property
    def free(self) -> int:
        """Populated bytes that nobody holds."""
        return self._free * self.chunk

    @property
    def blank(self) -> int:
        """Free chunks that are zero."""
        return len(self._blank)

    @property
    def soiled(self) -> int:
        """Free chunks that hold what others left, and that nobody is wiping."""
        return len(self._soiled)

    @property
    def cached(self) -> int:
        """Free bytes that hold a content somebody may come back for."""
        return len(self._remains) * self.chunk

    def find(self, content: str, first: int, count: int) -> Found:
        """Free chunks that hold the places `first … first + count - 1` of `content`."""
        return self._remains.find(content, first, count)

    @property
    def to_wipe(self) -> int:
        """Free chunks that are to be blank before anybody asks: the soiled ones, and of the remains as many as the
        next KV cache needs."""
        ready = len(self._blank) + len(self._wiping) + len(self._soiled)
        return len(self._soiled) + min(len(self._remains), max(0, self._most_kv - ready))

    @property
    def most_kv(self) -> int:
        """Chunks with KV that one process held at most: as many blank ones the next may ask for."""
        return self._most_kv

    @property
    def _free(self) -> int:
        return len(self._blank) + len(self._soiled) + len(self._wiping) + len(self._remains)

    @property
    def owners(self) -> tuple[Owner, ...]:
        return tuple(sorted(self._held))

    def grow(self) -> int:
        """A chunk of `debt` was created; returns its id.

        Raises:
            Shortage: nothing is missing; the chunk would exceed capacity.
        """
        if self.debt == 0:
            raise Shortage("the pool is complete")
        chunk = self._first + self._created
        self._created += 1
        heapq.heappush(self._blank, chunk)
        return chunk

    def adopt(self, owner: Owner, extents: Iterable[Extent]) -> None:
        """What a living process held before this start of the daemon stays charged to it."""
        for extent in extents:
            for chunk in range(extent.first, extent.first + extent.count):
                self._hold(owner, chunk, _Held(extent.kind, extent.ticket, extent.chunk))
                self._foreign.add(chunk)

    def missed(self, owner: Owner, chunk: int) -> bool:
        """Whether `owner` holds this chunk since before this start of the daemon, and it could be used again: its size
        is the pool's."""
        held = self._held.get(owner, {}).get(chunk)
        return held is not None and chunk in self._foreign and held.chunk == self.chunk

    def recover(self, owner: Owner, chunk: int) -> None:
        """The daemon has a handle of a `missed` chunk again: from now on it is like any other of its owner.

        Raises:
            NotYours: it is not missed.
        """
        if not self.missed(owner, chunk):
            raise NotYours(f"chunk {chunk} is not missed")
        self._foreign.discard(chunk)

    @property
    def foreign(self) -> int:
        """Bytes held since before this start of which the daemon has no handle."""
        return sum(self._held[self._owner[chunk]][chunk].chunk for chunk in self._foreign)

    def take(
        self,
        owner: Owner,
        kind: Kind,
        count: int,
        ticket: int,
        grant: int,
        *,
        overwritten: bool = False,
        kv: int = 0,
        found: Found = NOTHING,
    ) -> tuple[int, ...]:
        """`count` free chunks for `owner`, whose engine may hold `grant` bytes here afterwards (PROTOCOL rule 7): blank
        ones, or soiled ones first where they are `overwritten` whole before anything reads them; what was just `found`
        at its places. Behind them so many for its `kv`, which are blank. All or none.

        The same `ticket` again means that the first answer was lost: what it gave is taken back first.

        Raises:
            Shortage: the grant or the capacity does not allow it.
            Pending: the chunks are not created yet.
            Soiled: they are not wiped yet.
        """
        lost = [chunk for chunk, held in self._held.get(owner, {}).items() if held.ticket == ticket]
        self._drop(owner, lost)
        wanted = (count + kv) * self.chunk
        held = self.held_by(owner.holder)
        if held + wanted > grant:
            raise Shortage(f"{owner.holder} holds {held} B, wants {wanted} B more, was granted {grant} B")
        room = self.capacity - self.charged
        if wanted > room:
            raise Shortage(f"{owner.holder} wants {wanted} B, {room} B of {self.capacity} B are left")
        if count + kv > self._free:
            raise Pending(f"{count + kv - self._free} chunks are not populated yet")
        self._remains.take(found)
        others = iter(self._choose(count - len(found.chunks), overwritten, kv, found))
        chunks = tuple(found.chunks[place] if place in found.chunks else next(others) for place in range(count + kv))
        for place, chunk in enumerate(chunks):
            self._hold(owner, chunk, _Held(kind if place < count else Kind.KV, ticket, self.chunk))
        self._most_kv = max(self._most_kv, self.bytes_of(owner)[Kind.KV] // self.chunk)
        return chunks

    def _choose(self, count: int, overwritten: bool, kv: int, found: Found) -> tuple[int, ...]:
        """Beside what was found. Blank chunks that the next KV cache will want are overwritten last: after remains."""
        if overwritten:
            self._soil(count - len(self._soiled) - max(0, len(self._blank) - (kv or self._most_kv)))
        soiled = min(count, len(self._soiled)) if overwritten else 0
        blank = count - soiled + kv
        if (missing := blank - len(self._blank)) > 0:
            self._soil(missing - len(self._soiled) - len(self._wiping))
            self._remains.put_back(found)
            self._soil(missing - len(self._soiled) - len(self._wiping))  # of what was found, only where it must be
            raise Soiled(f"{missing} chunks are not wiped yet")
        sources = [self._soiled] * soiled + [self._blank] * blank
        return tuple(heapq.heappop(source) for source in sources)

    def _soil(self, count: int) -> None:
        """At most `count` remains become chunks that anybody may have."""
        self._soil_these(self._remains.give_up(count))

    def _soil_these(self, chunks: Iterable[int]) -> None:
        for chunk in chunks:
            heapq.heappush(self._soiled, chunk)

    # ---- wiping

    def begin_wiping(self, count: int) -> tuple[int, ...]:
        """At most `count` of the chunks `to_wipe`, which nobody gets until `end_wiping`."""
        self._soil(min(count, self.to_wipe) - len(self._soiled))
        chunks = tuple(heapq.heappop(self._soiled) for _ in range(min(count, len(self._soiled))))
        self._wiping.update(chunks)
        return chunks

    def end_wiping(self, chunks: Iterable[int], *, blank: bool) -> None:
        """These are zero now; or, not `blank`, it failed and they are as soiled as before."""
        for chunk in chunks:
            self._wiping.remove(chunk)
            heapq.heappush(self._blank if blank else self._soiled, chunk)

    def give_back(self, owner: Owner, chunks: Sequence[int], content: str = "", holding: int = 0) -> int:
        """These chunks are unmapped; returns how many bytes came back. What nobody holds is passed over: a repeated
        call whose first answer was lost must not fail. The first `holding` of them hold `content`, in this order.

        Raises:
            NotYours: one belongs to another process; nothing was given back.
        """
        for chunk in chunks:
            if self._owner.get(chunk, owner) != owner:
                raise NotYours(f"chunk {chunk} is not held by the caller")
        kept = chunks[:holding]
        whole = len(set(kept)) == len(kept) and self.holds(owner, kept) and self._foreign.isdisjoint(kept)
        noted = set(kept) if whole and content and self._remains.leave(content, kept) else set()
        return self._drop(owner, dict.fromkeys(chunk for chunk in chunks if chunk in self._owner), noted)

    def bequeath(self, owner: Owner, heir: Owner, chunks: Iterable[int]) -> None:
        """These chunks of `owner` are charged to `heir` from now on, who has them mapped already.

        Raises:
            NotYours: one is not `owner`'s; nothing has changed.
        """
        named = tuple(chunks)
        if not self.holds(owner, named):
            raise NotYours(f"not all of these chunks are held by {owner.holder}")
        mine = self._held[owner]
        for chunk in named:
            self._hold(heir, chunk, mine.pop(chunk))
        if not mine:
            self._held.pop(owner, None)

    def release(self, owner: Owner, keep: frozenset[int] = frozenset()) -> int:
        """The process is proven dead: all it held is back, but for the chunks `keep`. Returns how many bytes."""
        return self._drop(owner, [chunk for chunk in self._held.get(owner, ()) if chunk not in keep])

    @property
    def held(self) -> Set[int]:
        """Chunks that somebody holds: a view."""
        return self._owner.keys()

    def owner_of(self, chunk: int) -> Owner | None:
        """Who holds this chunk."""
        return self._owner.get(chunk)

    def holds(self, owner: Owner, chunks: Iterable[int], kind: Kind | None = None) -> bool:
        """Whether all these chunks are the owner's (and of this kind)."""
        mine = self._held.get(owner, {})
        return all(chunk in mine and kind in (None, mine[chunk].kind) for chunk in chunks)

    def held_by(self, holder: Holder) -> int:
        """Bytes that all processes of an engine hold together."""
        mine = (chunks for owner, chunks in self._held.items() if owner.holder == holder)
        return sum(held.chunk for chunks in mine for held in chunks.values())

    def bytes_of(self, owner: Owner) -> dict[Kind, int]:
        """Bytes by kind of one process."""
        totals = dict.fromkeys(Kind, 0)
        for held in self._held.get(owner, {}).values():
            totals[held.kind] += held.chunk
        return totals

    def extents_of(self, owner: Owner) -> tuple[Extent, ...]:
        """What a process holds, as runs: what the journal keeps."""
        return tuple(_runs(sorted(self._held.get(owner, {}).items())))

    def chunks_of(self, owner: Owner) -> frozenset[int]:
        """What a process holds."""
        return frozenset(self._held.get(owner, ()))

    def _hold(self, owner: Owner, chunk: int, held: _Held) -> None:
        self._held.setdefault(owner, {})[chunk] = held
        self._owner[chunk] = owner

    def _drop(self, owner: Owner, chunks: Collection[int], noted: Collection[int] = ()) -> int:
        """They are free; those `noted` remain, the others are soiled."""
        mine = self._held.get(owner, {})
        back = sum(mine.pop(chunk).chunk for chunk in chunks)
        for chunk in chunks:
            del self._owner[chunk]
        if not mine:
            self._held.pop(owner, None)
        self._soil_these(chunk for chunk in chunks if chunk not in noted and chunk not in self._foreign)
        self._foreign.difference_update(chunks)
        return back


def _runs(chunks: list[tuple[int, _Held]]) -> Iterator[Extent]:
    first, count, run = 0, 0, None
    for chunk, held in chunks:
        if held == run and chunk == first + count:
            count += 1
            continue
        if run is not None:
            yield Extent(run.kind, run.ticket, first, count, run.chunk)
        first, count, run = chunk, 1, held
    if run is not None:
        yield Extent(run.kind, run.ticket, first, count, run.chunk)
