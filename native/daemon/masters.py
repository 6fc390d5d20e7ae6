"""Host masters: one copy of each distinct content in host memory, and the node's budget for them and for saved KV.

A master is written through one descriptor, sealed under the digest of its content, and then shared read-only. It stays
while the daemon lives, unless the budget needs its bytes: then the least recently used of those that no engine of this
node uses goes first.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from native._native import Driver, DriverError, open_driver

log = logging.getLogger(__name__)


class NoRoom(Exception):
    """The node's budget for host memory does not allow it."""


class NoMaster(Exception):
    """There is no such master."""


class MasterFailed(Exception):
    """The host driver could not do it; the message says why."""


@dataclass(eq=False, slots=True)
class Master:
    """`handle` is the driver's, `descriptor` a writable one of ours; `users` are the numbers of processes."""

    handle: int
    descriptor: int
    size: int
    digest: str = ""
    users: set[int] = field(default_factory=set)


class Masters:
    """All masters of the node, unsealed ones included. `total` bytes are the budget, 0: none.

    `wanted` says which digests engines of this node have in their specs.
    """

    def __init__(self, total: int, wanted: Callable[[], frozenset[str]], pages: str = "auto") -> None:
        self.total = total
        self._wanted = wanted
        self._driver: Driver = open_driver("host", backing=pages)
        self._sealed: OrderedDict[str, Master] = OrderedDict()
        self._unsealed: set[Master] = set()
        self._reserved = 0
        self._freeing: set[asyncio.Future[None]] = set()
        self._saved_kv: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """Bytes of all masters, those being made included."""
        made = sum(master.size for master in (*self._sealed.values(), *self._unsealed))
        return made + self._reserved

    @property
    def saved_kv(self) -> int:
        """Bytes that processes reported for saved KV."""
        return sum(self._saved_kv.values())

    @property
    def digests(self) -> dict[str, int]:
        """Size of each sealed master."""
        return {digest: master.size for digest, master in self._sealed.items()}

    async def create(self, size: int, process: int) -> Master:
        """A new, unsealed master of at least `size` bytes, populated and zero.

        Raises:
            NoRoom, MasterFailed
        """
        grain = self._driver.granularity
        size = max(1, -(-size // grain)) * grain
        self._make_room(size)
        work = asyncio.ensure_future(self._populated(size, process))
        try:
            master = await asyncio.shield(work)
        except asyncio.CancelledError:
            # The thread cannot be stopped: what it makes is dropped when it is done.
            work.add_done_callback(self._drop_orphan)
            raise
        self._unsealed.add(master)
        return master

    def seal(self, master: Master, digest: str) -> None:
        """The master is whole and has this content; where that content has one already, the new one is dropped."""
        if digest in self._sealed:
            self._sealed[digest].users |= master.users
            self.drop(master)
            return
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

    def close(self) -> None:
        """Let go of all; who has one open keeps it."""
        for master in (*self._sealed.values(), *self._unsealed):
            self._release(master)
        self._sealed.clear()
        self._unsealed.clear()

    def _make_room(self, size: int) -> None:
        wanted = self._wanted()
        unused = (m for m in tuple(self._sealed.values()) if not m.users and m.digest not in wanted)
        while self.total and self.bytes + self.saved_kv + size > self.total:
            victim = next(unused, None)
            if victim is None:
                held = f"{self.bytes} B in masters, {self.saved_kv} B of saved KV"
                raise NoRoom(f"{size} B do not fit into {self.total} B of host memory ({held}); raise --host-ram")
            log.info("master %s goes, its %d MiB are needed", victim.digest[:24], victim.size >> 20)
            del self._sealed[victim.digest]
            self._free(victim)

    async def _populated(self, size: int, process: int) -> Master:
        self._reserved += size
        try:
            handle = await asyncio.to_thread(self._driver.create, size)
            return Master(handle, self._driver.export_handle(handle), size, users={process})
        except DriverError as error:
            raise MasterFailed(str(error)) from error
        finally:
            self._reserved -= size

    def _drop_orphan(self, work: asyncio.Future[Master]) -> None:
        if not work.cancelled() and work.exception() is None:
            self._free(work.result())

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
        self._driver.destroy(master.handle)
