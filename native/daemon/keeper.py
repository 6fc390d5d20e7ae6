"""Writes the journal before anybody hears of a change, many changes at once where the disk is slow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from native.daemon.bell import Bell
from native.journal import Journal, Ledger

log = logging.getLogger(__name__)

RETRY_PAUSE = 0.5


class Keeper:
    """`mark` after every change; `durable` returns once all that was marked until then is on disk.

    `snapshot` gives the ledger to persist; `written` is called with each one that became durable.
    """

    def __init__(self, journal: Journal, snapshot: Callable[[], Ledger], written: Callable[[Ledger], None]) -> None:
        self._journal = journal
        self._snapshot = snapshot
        self._written = written
        self._marked = 0
        self._durable = 0
        self._last: Ledger | None = None
        self._wake = asyncio.Event()
        self._bell = Bell()
        # Of its own: writing must not queue behind whatever else runs on threads (masters being populated).
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")

    def mark(self) -> None:
        """Something changed that may have to be persisted or published."""
        self._marked += 1
        self._wake.set()

    async def durable(self) -> None:
        """Until everything marked so far is on disk; bound it by a deadline."""
        wanted = self._marked
        while self._durable < wanted:
            await self._bell.wait()

    async def run(self) -> None:
        """Write until cancelled; a failing disk is tried again, and nothing is said meanwhile."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._keep()
        finally:
            self._thread.shutdown(wait=False)

    async def _keep(self) -> None:
        marked, ledger = self._marked, self._snapshot()
        while not await self._write(ledger):
            await asyncio.sleep(RETRY_PAUSE)
            marked, ledger = self._marked, self._snapshot()
        self._durable = marked
        self._written(ledger)
        self._bell.ring()

    async def _write(self, ledger: Ledger) -> bool:
        essence = _without_seen(ledger)
        if essence == self._last:
            return True
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._journal.write, ledger)
        except OSError as error:
            log.error("journal %s cannot be written, nothing is granted meanwhile: %s", self._journal.path, error)
            return False
        self._last = essence
        return True


def _without_seen(ledger: Ledger) -> Ledger:
    """`seen` moves with every change in etcd: alone it is not worth a write."""
    devices = {
        name: msgspec.structs.replace(device, record=msgspec.structs.replace(device.record, seen=0))
        for name, device in ledger.devices.items()
    }
    return msgspec.structs.replace(ledger, devices=devices)
