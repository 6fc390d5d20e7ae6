"""A random life of one driver and of processes that import its chunks, beside a model of what must be true.

After every step three accounts agree: the driver's (`stats`), the model's, and on a simulator the library's own books
of this process, of the importers and of the device. Bytes are looked at too: each chunk holds the byte written last.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field

from native._native import Driver, DriverError
from tests.helpers.drivers import DriverCase
from tests.helpers.window import Window
from tests.helpers.zygote import Importer, Zygote

SLOTS = 3
MOST_CHUNKS = 6
MOST_IMPORTERS = 2
WEIGHTS = {
    "reserve": 4, "create": 6, "map": 6, "write": 4, "share": 6, "borrow": 8, "borrower_maps": 6, "destroy": 4,
    "unmap": 3, "wipe": 3, "release": 2, "borrower_oversteps": 2, "borrower_unmaps": 2, "borrower_returns": 2,
    "kill": 3, "nonsense": 3,
}  # fmt: skip
"""How often what is tried, so that there is mostly something to do it with."""
FAILURES = {"ascend": 507899, "cuda": 999}


@dataclass(eq=False)
class Chunk:
    handle: int
    size: int
    byte: int = 0
    mapped_at: int = 0
    shareable: int | None = None
    owned: bool = True


@dataclass
class Held:
    """What an importer has of a chunk."""

    chunk: Chunk
    handle: int
    base: int = 0
    mapped: bool = False


@dataclass(eq=False)
class Borrower:
    process: Importer
    held: list[Held] = field(default_factory=list)

    def facts(self) -> list[int]:
        mapped = sum(one.chunk.size for one in self.held if one.mapped)
        imported = sum(one.chunk.size for one in self.held)
        return [len(self.held), imported, mapped, sum(1 for one in self.held if one.base)]


class Life:
    """One run on `driver`, which was warmed up; `told` is what happened, `end` gives everything back."""

    def __init__(self, case: DriverCase, driver: Driver, window: Window, zygote: Zygote, seed: int) -> None:
        self.case = case
        self.driver = driver
        self.window = window
        self.zygote = zygote
        self.random = random.Random(seed)
        self.unit = driver.granularity
        self.bases: list[int] = []
        self.chunks: list[Chunk] = []
        self.gone: list[Chunk] = []  # destroyed here, held elsewhere
        self.borrowers: list[Borrower] = []
        self.simulator = case.simulator()
        self.told: list[str] = []
        self.baseline = self.simulator.books() if self.simulator else None

    def step(self) -> None:
        name = self.random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if self.simulator is not None and self.random.random() < 0.1:
            self.simulator.fail(self.random.randrange(1, 8), FAILURES[self.case.name])
            name += " (a call may fail)"
        self.told.append(name)
        try:
            getattr(self, name.partition(" ")[0])()
        except DriverError:
            assert "may fail" in name
            self.told[-1] = name.replace("may fail", "failed")
        finally:
            if self.simulator is not None:
                self.simulator.forgive()
        self.check()

    # What may happen

    def pick(self, chunks: list[Chunk]) -> Chunk | None:
        return self.random.choice(chunks) if chunks else None

    def reserve(self) -> None:
        if len(self.bases) < 2:
            self.bases.append(self.driver.reserve(SLOTS * self.unit))

    def release(self) -> None:
        empty = [base for base in self.bases if not any(self.inside(chunk, base) for chunk in self.chunks)]
        if empty:
            base = self.random.choice(empty)
            self.driver.release(base)
            self.bases.remove(base)

    def inside(self, chunk: Chunk, base: int) -> bool:
        return base <= chunk.mapped_at < base + SLOTS * self.unit

    def create(self) -> None:
        if len(self.chunks) < MOST_CHUNKS:
            size = self.unit * self.random.choice((1, 1, 2))
            self.chunks.append(Chunk(self.driver.create(size), size))

    def destroy(self) -> None:
        chunk = self.pick([one for one in self.chunks if not one.mapped_at])
        if chunk is not None:
            self.driver.destroy(chunk.handle)
            self.chunks.remove(chunk)
            chunk.owned = False
            self.gone.append(chunk)

    def free_places(self, size: int) -> list[int]:
        taken = [(one.mapped_at, one.mapped_at + one.size) for one in self.chunks if one.mapped_at]
        places = [base + i * self.unit for base in self.bases for i in range(SLOTS - size // self.unit + 1)]
        return [at for at in places if not any(at < end and start < at + size for start, end in taken)]

    def map(self) -> None:
        chunk = self.pick([one for one in self.chunks if not one.mapped_at])
        places = self.free_places(chunk.size) if chunk else []
        if chunk is not None and places:
            at = self.random.choice(places)
            self.driver.map(at, chunk.handle)
            chunk.mapped_at = at

    def unmap(self) -> None:
        chunk = self.pick([one for one in self.chunks if one.mapped_at])
        if chunk is not None:
            self.driver.unmap(chunk.mapped_at)
            chunk.mapped_at = 0

    def write(self) -> None:
        chunk = self.pick([one for one in self.chunks if one.mapped_at])
        if chunk is not None:
            byte = self.random.randrange(1, 256)
            self.window.write(chunk.mapped_at, bytes([byte]))
            chunk.byte = byte

    def wipe(self) -> None:
        chunk = self.pick(self.chunks)
        if chunk is not None:
            try:
                self.driver.wipe([chunk.handle])
            except DriverError:
                chunk.byte = -1  # it may be zero or not
                raise
            chunk.byte = 0

    def share(self) -> None:
        chunk = self.pick([one for one in self.chunks if one.shareable is None])
        if chunk is not None:
            chunk.shareable = self.driver.export_handle(chunk.handle)

    def borrow(self) -> None:
        if len(self.borrowers) < MOST_IMPORTERS:
            self.borrowers.append(Borrower(self.zygote.importer()))
        borrower = self.random.choice(self.borrowers)
        known = [one.chunk for one in borrower.held]
        chunk = self.pick([one for one in self.chunks if one.shareable is not None and one not in known])
        if chunk is None or chunk.shareable is None:
            return
        self.driver.permit(chunk.handle, [borrower.process.share_id])
        fd = chunk.shareable if self.driver.sharing == "descriptor" else None
        how, handle, _ = borrower.process.call("import_handle", chunk.shareable, chunk.size, fd=fd)
        assert how == "done", handle
        borrower.held.append(Held(chunk, handle))

    def some_held(self, mapped: bool) -> tuple[Borrower, Held] | None:
        found = [(one, held) for one in self.borrowers for held in one.held if held.mapped is mapped]
        return self.random.choice(found) if found else None

    def borrower_maps(self) -> None:
        found = self.some_held(mapped=False)
        if found is not None:
            borrower, held = found
            if not held.base:
                held.base = borrower.process.call("reserve", held.chunk.size)[1]
            assert borrower.process.call("map", held.base, held.handle)[0] == "done"
            held.mapped = True

    def borrower_oversteps(self) -> None:
        """Not into the driver's memory: it tries what an importer may not, and what nobody may while it is mapped."""
        found = self.some_held(mapped=True)
        if found is not None:
            borrower, held = found
            assert borrower.process.call("wipe", [held.handle])[:2] == ("refused", "EPERM")
            assert borrower.process.call("destroy", held.handle)[:2] == ("refused", "EBUSY")
            assert borrower.process.call("release", held.base)[:2] == ("refused", "EBUSY")

    def borrower_unmaps(self) -> None:
        found = self.some_held(mapped=True)
        if found is not None:
            borrower, held = found
            assert borrower.process.call("unmap", held.base)[0] == "done"
            held.mapped = False

    def borrower_returns(self) -> None:
        found = self.some_held(mapped=False)
        if found is not None:
            borrower, held = found
            if held.base:
                assert borrower.process.call("release", held.base)[0] == "done"
            assert borrower.process.call("destroy", held.handle)[0] == "done"
            borrower.held.remove(held)

    def kill(self) -> None:
        if self.borrowers and self.random.random() < 0.5:
            borrower = self.random.choice(self.borrowers)
            borrower.process.kill()
            self.borrowers.remove(borrower)

    def nonsense(self) -> None:
        """Calls that break a rule: each is refused, whatever else is the case."""
        mapped = [one for one in self.chunks if one.mapped_at]
        wrong: list[tuple[str, tuple[object, ...]]] = [("create", (self.unit + 1,)), ("destroy", (1 << 40,))]
        wrong += [("destroy", (one.handle,)) for one in mapped]
        wrong += [("map", (one.mapped_at, one.handle)) for one in mapped]
        wrong += [("unmap", (one.mapped_at + 4096,)) for one in mapped]
        wrong += [("export_handle", (one.handle,)) for one in self.chunks if one.shareable is not None]
        verb, args = self.random.choice(wrong)
        try:
            getattr(self.driver, verb)(*args)
        except DriverError:
            return
        raise AssertionError(f"{verb}{args} was not refused")

    # What must be true

    def check(self) -> None:
        mine = self.driver.stats()
        own = sum(one.size for one in self.chunks)
        mapped = sum(one.size for one in self.chunks if one.mapped_at)
        assert (mine.handles, mine.own_bytes, mine.imported_bytes) == (len(self.chunks), own, 0)
        assert (mine.mapped_bytes, mine.reservations) == (mapped, len(self.bases))
        for borrower in self.borrowers:
            assert borrower.process.call("facts")[2] == borrower.facts()
        for chunk in self.chunks:
            if chunk.mapped_at and chunk.byte >= 0:
                assert self.window.read(chunk.mapped_at, 1) == bytes([chunk.byte])
        if self.simulator is not None and self.baseline is not None:
            books, before = self.simulator.books(), self.baseline
            process = {name: books["process"][name] - before["process"][name] for name in books["process"]}
            assert (process["handles"], process["own_bytes"], process["imported_bytes"]) == (len(self.chunks), own, 0)
            assert (process["mapped_bytes"], process["reservations"]) == (mapped, len(self.bases))
            assert books["used"][0] - before["used"][0] == self.alive()

    def alive(self) -> int:
        """Bytes of chunks that somebody has: the owner, an importer, or (as a descriptor) nobody in particular."""
        held = {id(one.chunk) for borrower in self.borrowers for one in borrower.held}
        descriptors = self.driver.sharing == "descriptor"
        return sum(
            one.size
            for one in [*self.chunks, *self.gone]
            if one.owned or id(one) in held or (descriptors and one.shareable is not None)
        )

    def end(self) -> None:
        for borrower in self.borrowers:
            borrower.process.kill()
        self.borrowers.clear()
        for chunk in self.chunks:
            if chunk.mapped_at:
                self.driver.unmap(chunk.mapped_at)
            self.driver.destroy(chunk.handle)
        for chunk in [*self.chunks, *self.gone]:
            if chunk.shareable is not None and self.driver.sharing == "descriptor":
                os.close(chunk.shareable)
        self.chunks.clear()
        self.gone.clear()
        for base in self.bases:
            self.driver.release(base)
        self.bases.clear()
        self.check()
