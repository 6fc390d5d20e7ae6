"""One device: its fence, its pool, and the physical chunks behind the pool's numbers."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping

from coordinator.core.model import Order
from native import _native
from native._native import Driver, DriverError, open_driver
from native.daemon.counters import Counters
from native.daemon.options import DeviceOption
from native.daemon.wiper import Wiper
from native.fences import Fences
from native.files import FileId, files, identify, runs
from native.frames import close_all
from native.journal import DeviceLedger, Held, KeptShare, KeptView
from native.pool import Extent, NotYours, Owner, Pool
from native.processes import Identity

log = logging.getLogger(__name__)

CREATE_PAUSE = 1.0
_PROGRESS_EVERY = 5.0


class DeviceFailed(Exception):
    """The device cannot be used as configured; the message says what to do."""


class Opened:
    """Descriptors that are sent and then closed."""

    def __init__(self) -> None:
        self._descriptors: list[int] = []

    @property
    def descriptors(self) -> tuple[int, ...]:
        return tuple(self._descriptors)

    def add(self, descriptor: int) -> None:
        self._descriptors.append(descriptor)

    def close(self) -> None:
        close_all(self._descriptors)
        self._descriptors.clear()


class Device:
    """A device of this node. `populate` is to run all the time: it creates what the pool is short of."""

    def __init__(
        self,
        option: DeviceOption,
        ledger: DeviceLedger,
        generation: int,
        changed: Callable[[], None],
        pages: str = "auto",
    ) -> None:
        """`changed` is called whenever chunks became available; `pages` says where the host driver takes them from.

        Raises:
            DeviceFailed: its driver does not open.
        """
        self.option = option
        self._changed = changed
        self.fences = Fences(ledger.record)
        self.pool = Pool(option.capacity, option.chunk, generation)
        self.counters = Counters()
        self.short = asyncio.Event()
        """Set when the pool is short of chunks."""
        self.short.set()
        self._descriptors: dict[int, int] = {}
        self._files = files(ledger.files)
        """Of every chunk that has a descriptor here, and of those that are missed since a restart."""
        self._handles: dict[int, int] = {}
        """The driver's own, by chunk; none of those that came back after a restart."""
        self._numbers: dict[int, int] = {}
        """Of a driver that shares by number instead of by descriptor."""
        self.wiper = Wiper(self.pool, self._wipe, self._restoring, changed, self.counters)
        self._stood = self.fences.stand
        self._coming = 0
        """Bytes that are being created: the driver has them no more, the pool not yet."""
        index = int(option.id) if option.id.isdecimal() else 0
        try:
            self.driver: Driver = open_driver(option.driver, index, self.pool.capacity, pages)
        except DriverError as error:
            raise DeviceFailed(f"device {option.id}: {error}") from error
        if self.driver.huge:
            log.info("device %s: %s driver, huge pages from %s", option.id, self.driver.name, self.driver.backing)
        else:
            log.warning("device %s: no huge pages (%s): copies are slow", option.id, self.driver.backing)

    def stirred(self) -> bool:
        """Whether an operation was granted, has begun or has ended since this was asked last."""
        stood, self._stood = self._stood, self.fences.stand
        return self._stood != stood

    def adopt(self, owner: Owner, held: tuple[Extent, ...]) -> None:
        """Pages that a living process kept over a restart of the daemon."""
        self.pool.adopt(owner, held)

    @property
    def files(self) -> Mapping[int, FileId]:
        """Where chunks lie: those that the daemon has and those that are missed; empty where memory is no file."""
        return self._files

    def take_back(self, owner: Owner, beside: Mapping[int, int]) -> None:
        """Descriptors (the caller's to close) of chunks that the owner held before this start: taken as this daemon's
        own, so that others can have them afterwards. All are checked before one is taken; what is not missed is passed
        over.

        Raises:
            NotYours: a descriptor is not of the file that the journal names.
            OSError: one cannot be used, or there are none left.
        """
        missed = {chunk: beside[chunk] for chunk in beside if self.pool.missed(owner, chunk)}
        for chunk, descriptor in missed.items():
            if self.driver.name != "host" or identify(descriptor) != (self._files.get(chunk), self.pool.chunk):
                raise NotYours(f"the descriptor that came for chunk {chunk} is not of that chunk")
        copies: dict[int, int] = {}
        try:
            for chunk, descriptor in missed.items():
                copies[chunk] = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 0)
        except OSError:
            close_all(copies.values())
            raise
        for chunk, copy in copies.items():
            self.pool.recover(owner, chunk)
            self._descriptors[chunk] = copy
        if copies:
            log.info("device %s: %d chunks of %s are back in the daemon's hands", self.option.id, len(copies), owner)

    def read_only(self, chunks: tuple[int, ...]) -> Opened:
        """New descriptors of these chunks, which cannot be written through where the driver's memory is a file.

        Raises:
            LookupError: of one the daemon has none, because its owner has not handed it back since a restart.
            OSError
        """
        opened = Opened()
        try:
            for chunk in chunks:
                if self.driver.name == "host":
                    path = f"/proc/self/fd/{self._descriptors[chunk]}"
                    opened.add(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                else:
                    opened.add(os.dup(self._descriptors[chunk]))
        except BaseException:
            opened.close()
            raise
        return opened

    def has(self, chunks: Iterable[int]) -> bool:
        """Whether others can be given descriptors of all of these: none is missed since a restart."""
        return all(chunk in self._descriptors for chunk in chunks)

    def release(self, owner: Owner, keep: frozenset[int] = frozenset()) -> int:
        """The owner is proven dead; returns how many bytes came back. The chunks `keep` are not back yet."""
        back = self.pool.release(owner, keep)
        self.short.set()
        self.wiper.look()
        return back

    def give_back(self, owner: Owner, chunks: tuple[int, ...], content: str = "", holding: int = 0) -> int:
        """As `Pool.give_back`."""
        back = self.pool.give_back(owner, chunks, content, holding)
        self.short.set()
        self.wiper.look()
        return back

    def descriptors(self, chunks: tuple[int, ...]) -> tuple[int, ...]:
        """One for each chunk, to be sent; they stay the daemon's."""
        return tuple(self._descriptors[chunk] for chunk in chunks)

    async def permit(self, chunks: tuple[int, ...], share_id: int) -> tuple[int, ...]:
        """Of a driver that shares by number: that of each chunk, which the process `share_id` may import from now on.
        Else nothing.

        Raises:
            DriverError: the driver refused.
        """
        if self.driver.sharing != "handle":
            return ()
        await asyncio.to_thread(self._permit, chunks, share_id)
        return tuple(self._numbers[chunk] for chunk in chunks)

    def _permit(self, chunks: tuple[int, ...], share_id: int) -> None:
        for chunk in chunks:
            self.driver.permit(self._handles[chunk], (share_id,))

    def ledger(
        self,
        identities: Mapping[int, Identity],
        views: tuple[KeptView, ...] = (),
        shares: tuple[KeptShare, ...] = (),
    ) -> DeviceLedger:
        """What is to be persisted of this device; `identities` by process number."""
        owners = (
            Held(owner.process, owner.holder, identities[owner.process], self.pool.extents_of(owner))
            for owner in self.pool.owners
        )
        held = {chunk: self._files[chunk] for chunk in self.pool.held & self._files.keys()}
        for gone in self._files.keys() - held.keys() - self._descriptors.keys():
            del self._files[gone]
        return DeviceLedger(self.fences.record, tuple(owners), runs(held), views, shares)

    def measured_free(self) -> int:
        """Bytes that engines may still take, as far as the driver can tell: never more than the ledger says."""
        missing = self.pool.debt * self.pool.chunk
        return self.pool.free + (min(missing, self.driver.free_bytes() + self._coming) if missing else 0)

    def drift(self) -> int:
        """Bytes that the ledger calls free and the driver does not have (0 or more)."""
        return max(0, self.pool.capacity - self.pool.charged - self.measured_free())

    async def populate(self) -> None:
        """Create what is missing to capacity, for ever. The ledger is in agreement (PROTOCOL rule 11) when the driver
        could give all that nobody holds.

        Raises:
            DeviceFailed: at a fresh start the driver cannot give the configured capacity.
        """
        while True:
            await self.short.wait()
            self.short.clear()
            await self._pay()
            if not self.fences.agreed:
                log.info("device %s: %d MiB are populated", self.option.id, self.pool.free >> 20)
            self.fences.agree()
            self._changed()

    async def _pay(self) -> None:
        began = said = time.monotonic()
        while self.pool.debt:
            try:
                handle, shareable = await self._create()
            except DriverError as error:
                self._complain(error)
                await asyncio.sleep(CREATE_PAUSE)
                continue
            self._keep(self.pool.grow(), handle, shareable)
            if self.fences.agreed:
                self._changed()
            if time.monotonic() - said > _PROGRESS_EVERY:
                said = time.monotonic()
                self._tell(began, said)

    def _wipe(self, chunks: tuple[int, ...]) -> None:
        self.driver.wipe([self._handles[chunk] for chunk in chunks if chunk in self._handles])
        for chunk in chunks:
            if chunk not in self._handles:
                _native.wipe_file(self._descriptors[chunk], self.pool.chunk)

    def _restoring(self) -> bool:
        opened = self.fences.record.open
        return opened is not None and opened.order == Order.RESTORE

    def _keep(self, chunk: int, handle: int, shareable: int) -> None:
        self._handles[chunk] = handle
        if self.driver.sharing == "handle":
            self._numbers[chunk] = shareable
        else:
            self._descriptors[chunk] = shareable
            if (named := identify(shareable)) is not None:
                self._files[chunk] = named[0]

    async def _create(self) -> tuple[int, int]:
        began = time.monotonic()
        self._coming = self.pool.chunk
        try:
            handle = await asyncio.to_thread(self.driver.create, self.pool.chunk)
            self.counters.took("populate", time.monotonic() - began, self.pool.chunk)
            return handle, self.driver.export_handle(handle)
        finally:
            self._coming = 0

    def _complain(self, error: DriverError) -> None:
        if not self.fences.agreed and not self.pool.charged:
            have = f"{self.pool.free >> 20} of {self.pool.capacity >> 20} MiB could be populated"
            raise DeviceFailed(
                f"device {self.option.id}: {have}: {error}; lower its capacity or free memory"
            ) from error
        log.warning("device %s lacks %d chunks, trying again: %s", self.option.id, self.pool.debt, error)

    def _tell(self, began: float, now: float) -> None:
        have = self.pool.free + self.pool.charged
        rate = self.pool.free / (now - began) / 1e9
        left = self.pool.debt * self.pool.chunk / max(rate * 1e9, 1)
        log.info(
            "device %s: %d of %d MiB populated, %.2f GB/s, %.0f s left",
            self.option.id, have >> 20, self.pool.capacity >> 20, rate, left,
        )  # fmt: skip

    def close(self) -> None:
        """Let go of all chunks; what engines hold stays theirs until they end."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
