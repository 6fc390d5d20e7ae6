"""Host masters: one copy of each distinct content in host memory, and the node's budget for them and for saved KV.

A master is written through one descriptor, sealed under the digest of its content, and then shared read-only. Its users
are the processes that have it mapped: while there is one it is *pinned*, because an engine whose pages are away has
nothing else. What nobody uses is kept for who comes next, until the budget needs its bytes: then the least recently
used goes first, and of those the ones that no engine of this node has in its spec.

A user that has its pages can do without: it may be asked to let go (`Short.spare`), and reads or fills a master anew
before its pages leave.

Over a restart of the daemon the users keep the master alive. Until one of them hands it back it is *missed*: charged,
and of no use to anybody else.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from native._native import Driver, DriverError, open_driver
from native.daemon.sample import sample
from native.files import FileId, identify
from native.journal import HostLedger, KeptMaster

log = logging.getLogger(__name__)


class NoRoom(Exception):
    """The node's budget for host memory does not allow it."""


class Short(NoRoom):
    """It would, if the processes `spare` (by digest) let go of masters whose content they have in their own pages."""

    def __init__(self, why: str, spare: dict[str, frozenset[int]]) -> None:
        super().__init__(why)
        self.spare = spare


class NoMaster(Exception):
    """There is no such master."""


class NotThat(Exception):
    """What was handed back is not what is missed."""


class MasterFailed(Exception):
    """The host driver could not do it; the message says why."""


@dataclass(eq=False, slots=True)
class Master:
    """`handle` is the driver's, None where an engine handed it back; `descriptor` is ours; `users` are the numbers of
    the processes that have it mapped. Size in bytes."""

    handle: int | None
    descriptor: int
    size: int
    file: FileId
    users: set[int] = field(default_factory=set)
    digest: str = ""
    sample: int = 0

    @property
    def kept(self) -> KeptMaster:
        return KeptMaster(self.digest, self.size, self.file, self.sample, tuple(sorted(self.users)))


@dataclass(eq=False, slots=True)
class Missed:
    """A master of an earlier life of the daemon that living processes still have mapped."""

    kept: KeptMaster
    users: set[int]


class Masters:
    """All masters of the node, unsealed ones included. `total` bytes are the budget, 0: none.

    `wanted` says which digests engines of this node have in their specs, `resident` whether a process has pages.
    """

    def __init__(
        self,
        total: int,
        wanted: Callable[[], frozenset[str]],
        pages: str = "auto",
        resident: Callable[[int], bool] = lambda process: False,
    ) -> None:
        self.total = total
        self.evicted = 0
        """Masters that went for the budget."""
        self._wanted = wanted
        self._resident = resident
        self._driver: Driver = open_driver("host", backing=pages)
        self._sealed: OrderedDict[str, Master] = OrderedDict()
        self._unsealed: set[Master] = set()
        self._missed: list[Missed] = []
        self._reserved = 0
        self._freeing: set[asyncio.Future[None]] = set()
        self._saved_kv: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """Bytes of all masters, those being made and those missed included."""
        made = sum(master.size for master in (*self._sealed.values(), *self._unsealed))
        return made + sum(missed.kept.size for missed in self._missed) + self._reserved

    @property
    def saved_kv(self) -> int:
        """Bytes that processes reported for saved KV."""
        return sum(self._saved_kv.values())

    @property
    def digests(self) -> dict[str, int]:
        """Size of each sealed master."""
        return {digest: master.size for digest, master in self._sealed.items()}

    @property
    def pinned(self) -> int:
        """Bytes of sealed masters that some process has mapped."""
        return sum(master.size for master in self._sealed.values() if master.users)

    @property
    def unused(self) -> int:
        """Bytes of sealed masters that nobody has mapped: they go when their bytes are needed."""
        return sum(master.size for master in self._sealed.values() if not master.users)

    def facts(self) -> dict[str, int]:
        """For people: bytes some process has mapped, bytes nobody has handed back since a restart, masters evicted."""
        missed = sum(missed.kept.size for missed in self._missed)
        return {"pinned": self.pinned, "missed": missed, "evicted": self.evicted}

    def missed(self, digest: str) -> bool:
        """Whether living processes have this content mapped and may hand it back."""
        return any(missed.kept.digest == digest for missed in self._missed)

    # ---- over a restart

    def ledger(self) -> HostLedger:
        """What is to be persisted: what processes hold of the budget."""
        held = [master.kept for master in self._sealed.values() if master.users]
        held += [
            KeptMaster(m.kept.digest, m.kept.size, m.kept.file, m.kept.sample, tuple(sorted(m.users)))
            for m in self._missed
        ]
        return HostLedger(tuple(held), {process: size for process, size in self._saved_kv.items() if size})

    def recall(self, ledger: HostLedger, alive: Collection[int]) -> None:
        """What the living of these processes held before this start is charged (PROTOCOL rule 11, for host memory)."""
        self._saved_kv = {process: size for process, size in ledger.saved_kv.items() if process in alive}
        for kept in ledger.masters:
            if users := set(kept.users) & set(alive):
                self._missed.append(Missed(kept, users))
                log.info("master %s of %d MiB is with its %d users", kept.digest[:24], kept.size >> 20, len(users))

    async def hand_back(self, digest: str, descriptor: int, process: int) -> bool:
        """A user hands a missed master back; `descriptor` stays the caller's. False: nothing of it is missed.

        Raises:
            NotThat: this file is not what the journal names, or its content is not what was sealed.
            OSError: the descriptor cannot be used.
        """
        missed = next((m for m in self._missed if m.kept.digest == digest and process in m.users), None)
        if missed is None:
            return False
        kept = missed.kept
        if identify(descriptor) != (kept.file, kept.size):
            raise NotThat(f"the descriptor is not that of master {digest}")
        copy = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if await asyncio.to_thread(sample, copy, kept.size) != kept.sample:
                raise NotThat(f"master {digest} does not hold what was sealed")
        except BaseException:
            os.close(copy)
            raise
        if missed not in self._missed or digest in self._sealed:
            os.close(copy)  # another user was faster, or the content was read anew: then this one goes with its users
            return True
        self._missed.remove(missed)
        self._sealed[digest] = Master(None, copy, kept.size, kept.file, missed.users, digest, kept.sample)
        log.info("master %s is back, %d MiB", digest[:24], kept.size >> 20)
        return True

    # ---- in life

    async def create(self, size: int, process: int) -> Master:
        """A new, unsealed master of at least `size` bytes, populated and zero.

        Raises:
            NoRoom, MasterFailed
        """
        grain = self._driver.granularity
        size = max(1, -(-size // grain)) * grain
        self._make_room(size)
        self._reserved += size  # at once: nobody else may be told that there is room
        work = asyncio.ensure_future(self._populated(size, process))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # The thread cannot be stopped: what it makes is dropped when it is done.
            work.add_done_callback(self._drop_orphan)
            raise

    async def seal(self, master: Master, digest: str) -> None:
        """The master is whole and has this content; where that content has one already, the new one is dropped."""
        if digest not in self._sealed:
            master.sample = await asyncio.to_thread(sample, master.descriptor, master.size)
        if digest in self._sealed:
            self._sealed[digest].users |= master.users
            self.drop(master)
            return
        _close_for_writing(master.descriptor)
        self._unsealed.discard(master)
        master.digest = digest
        self._sealed[digest] = master
        log.info("master %s sealed, %d MiB", digest[:24], master.size >> 20)

    def open(self, digest: str, process: int) -> tuple[int, int]:
        """A new read-only descriptor (the caller's to close) of the sealed master, and its size.

        Raises:
            NoMaster, OSError
        """
        master = self._sealed.get(digest)
        if master is None:
            raise NoMaster(f"no master of {digest}")
        descriptor = os.open(f"/proc/self/fd/{master.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        master.users.add(process)
        self._sealed.move_to_end(digest)
        return descriptor, master.size

    def release(self, digest: str, process: int) -> None:
        """The process has it mapped no more. Idempotent."""
        if digest in self._sealed:
            self._sealed[digest].users.discard(process)
        for missed in self._missed:
            if missed.kept.digest == digest:
                missed.users.discard(process)
        self._missed = [missed for missed in self._missed if missed.users]

    def drop(self, master: Master) -> None:
        """An unsealed master goes: its connection is over, or its content was there already. Idempotent."""
        if master in self._unsealed:
            self._unsealed.discard(master)
            self._free(master)

    def report(self, process: int, saved_kv: int) -> None:
        """A process holds so many bytes of saved KV from now on.

        Raises:
            NoRoom: the last report stands.
        """
        more = saved_kv - self._saved_kv.get(process, 0)
        if more > 0:
            self._make_room(more)
        self._saved_kv[process] = saved_kv

    def forget(self, process: int) -> None:
        """The process is dead: what it used is unused, what it saved is gone."""
        self._saved_kv.pop(process, None)
        for master in self._sealed.values():
            master.users.discard(process)
        for missed in self._missed:
            missed.users.discard(process)
        self._missed = [missed for missed in self._missed if missed.users]

    def close(self) -> None:
        """Let go of all; who has one open keeps it."""
        for master in (*self._sealed.values(), *self._unsealed):
            self._release(master)
        self._sealed.clear()
        self._unsealed.clear()

    def _make_room(self, size: int) -> None:
        over = self.bytes + self.saved_kv + size - self.total if self.total else 0
        if over <= 0:
            return
        wanted = self._wanted()
        unused = [m for m in self._sealed.values() if not m.users]
        going = sorted(unused, key=lambda master: master.digest in wanted)  # stable: least recently used first
        if sum(master.size for master in going) < over:
            raise self._no_room(size, over - sum(master.size for master in going))
        for victim in going:
            if over > 0:
                over -= victim.size
                self._evict(victim)

    def _evict(self, victim: Master) -> None:
        log.info("master %s goes, its %d MiB are needed", victim.digest[:24], victim.size >> 20)
        self.evicted += 1
        del self._sealed[victim.digest]
        self._free(victim)

    def _no_room(self, size: int, lacking: int) -> NoRoom:
        """`lacking`: bytes that are missing once everything unused is gone."""
        held = f"{self.bytes} B in masters, {self.saved_kv} B of saved KV"
        why = f"{size} B do not fit into {self.total} B of host memory ({held}); raise --host-ram"
        spare: dict[str, frozenset[int]] = {}
        for master in self._sealed.values():
            if master.users and all(self._resident(user) for user in master.users):
                spare[master.digest] = frozenset(master.users)
                lacking -= master.size
            if lacking <= 0:
                return Short(why, spare)
        return NoRoom(why)

    async def _populated(self, size: int, process: int) -> Master:
        try:
            handle = await asyncio.to_thread(self._driver.create, size)
            master = self._exported(handle, size, process)
            self._unsealed.add(master)
            return master
        except DriverError as error:
            raise MasterFailed(str(error)) from error
        finally:
            self._reserved -= size

    def _exported(self, handle: int, size: int, process: int) -> Master:
        descriptor = self._driver.export_handle(handle)
        named = identify(descriptor)
        if named is None:
            raise MasterFailed("the host driver's memory is no file")
        return Master(handle, descriptor, size, named[0], {process})

    def _drop_orphan(self, work: asyncio.Future[Master]) -> None:
        if not work.cancelled() and work.exception() is None:
            self.drop(work.result())

    def _free(self, master: Master) -> None:
        """On a thread: giving a gigabyte of small pages back takes a while."""
        work = asyncio.get_running_loop().run_in_executor(None, self._release, master)
        self._freeing.add(work)
        work.add_done_callback(self._freed)

    def _freed(self, work: asyncio.Future[None]) -> None:
        self._freeing.discard(work)
        if not work.cancelled() and (error := work.exception()) is not None:
            log.error("a master could not be freed: %s", error)

    def _release(self, master: Master) -> None:
        os.close(master.descriptor)
        if master.handle is not None:
            self._driver.destroy(master.handle)


def _close_for_writing(descriptor: int) -> None:
    """Nobody opens it for writing any more (who had it open for writing was its maker). Root still could: the digest
    samples at each restore would show."""
    os.fchmod(descriptor, 0o400)
