"""A whole node in the test's process, with a real journal: killed and started again in milliseconds."""

from __future__ import annotations

import asyncio

from coordinator.store.base import Store
from native.daemon.keeper import _without_seen
from native.daemon.node import Node
from native.daemon.options import Options
from native.journal import Journal, Ledger


class InProcess:
    """`kill` ends it without a word: what it had not written is forgotten, its descriptors are closed."""

    def __init__(self, options: Options, store: Store) -> None:
        self._options = options
        self._store = store
        self.node: Node
        self._journal: Journal
        self._running: asyncio.Task[None] | None = None

    @property
    def runs(self) -> bool:
        return self._running is not None and not self._running.done()

    def written(self) -> Ledger | None:
        """What a daemon that started now would go by."""
        ledger = self._journal.load()
        return None if ledger is None else _without_seen(ledger)

    def now(self) -> Ledger:
        """What it knows."""
        return _without_seen(self.node._snapshot())

    async def start(self) -> Node:
        """Returns when what is free is populated."""
        self._journal = Journal(self._options.state_dir, "boot")
        self.node = Node(self._options, self._journal, self._store)
        self._running = asyncio.create_task(self.node.run())
        async with asyncio.timeout(60):
            while not all(device.fences.publishable for device in self.node.devices.values()):
                assert not self._running.done(), self._running.exception()
                await self.node.bell.wait()
        return self.node

    async def kill(self) -> None:
        assert self._running is not None
        self._running.cancel()
        await asyncio.wait((self._running,))
        if not self._running.cancelled():
            self._running.result()
        self._journal.close()
