"""A node daemon without memory: for tests of the coordinator. It keeps PROTOCOL rules 6 to 10 honestly and counts bytes
instead of moving them. One loop, in the test's process."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from coordinator.core.events import Fact, SeatSeen, TokenSeen
from coordinator.core.model import Bytes, Device, Holder, Open, Order, Owner, Seat, Token
from coordinator.errors import StoreError
from coordinator.store import keys
from coordinator.store.base import Listing, Put, Store
from coordinator.store.codec import encode
from coordinator.store.epoch import ensure_epoch
from coordinator.store.facts import Reader
from coordinator.store.follow import follow
from coordinator.store.session import Session, open_session

RETRY_S = 0.2


class Stale(Exception):
    """The fence is not the one that stands, or is closed already."""


class OverCapacity(Exception):
    """Bytes were asked for beyond the device or the grant: a decision was wrong."""


class StubDaemon:
    """One device. `entered` are the fences that got in, in order; `worst` the most bytes ever held."""

    def __init__(self, store: Store, device: str = "local/0", capacity: int = 100) -> None:
        self.device = device
        self.capacity = capacity
        self.entered: list[tuple[int, Order, Holder]] = []
        self.worst = 0
        self.ready = asyncio.Event()
        self._store = store
        self._dirty = asyncio.Event()
        self._epoch = ""
        self._closed = 0
        self._open: Open | None = None
        self._owners: dict[Holder, int] = {}
        self._seat: tuple[Seat, int] | None = None
        self._token: tuple[Token, int] | None = None
        self._view = 0
        self._moved = asyncio.Condition()

    async def run(self) -> None:
        """Until cancelled; a lost lease is replaced by a new one (rule 14)."""
        self._epoch = (await ensure_epoch(self._store)).id
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            while True:
                try:
                    async with open_session(self._store) as session:
                        await self._publish_while(session)
                except StoreError:
                    await asyncio.sleep(RETRY_S)

    async def _watch(self) -> None:
        reader = Reader()
        async with aclosing(follow(self._store, keys.ROOT)) as updates:
            async for update in updates:
                seen = reader.listed(update) if isinstance(update, Listing) else reader.changed(update)
                await self._see(seen.facts, seen.revision, whole=isinstance(update, Listing))

    async def _publish_while(self, session: Session) -> None:
        """The device key follows the ledger, one put after the other. Raises StoreError when etcd is away."""
        lost = asyncio.ensure_future(session.lost.wait())
        self._dirty.set()
        try:
            while not session.lost.is_set():
                dirty = asyncio.ensure_future(self._dirty.wait())
                await asyncio.wait((lost, dirty), return_when=asyncio.FIRST_COMPLETED)
                dirty.cancel()
                self._dirty.clear()
                await self._store.txn([], [Put(keys.device(self.device), encode(self._state()), session.lease)])
                self.ready.set()
        finally:
            self._dirty.set()
            lost.cancel()

    async def enter(self, holder: Holder, revision: int) -> Token:
        """Rule 6. Raises Stale."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._view >= revision)
            await self._moved.wait_for(lambda: self._open is None or self._open.revision == revision)
            if self._token is None or self._token[1] != revision or revision <= self._closed:
                raise Stale(f"fence {revision}: closed {self._closed}, token {self._token}")
            token = self._token[0]
            if token.holder != holder:
                raise Stale(f"fence {revision} is {token.holder}'s")
            self._open = Open(holder, revision, token.order)
            self.entered.append((revision, token.order, holder))
            self._dirty.set()
            return token

    async def hold(self, holder: Holder, count: int, revision: int) -> None:
        """Rule 7: from now on `holder` maps `count` bytes. Raises Stale or OverCapacity."""
        if self._open is None or (self._open.holder, self._open.revision) != (holder, revision):
            raise Stale(f"{holder} has nothing open")
        total = sum(self._owners.values()) - self._owners.get(holder, 0) + count
        if total > self.capacity:
            raise OverCapacity(f"{total} of {self.capacity} bytes")
        self._owners = {**self._owners, holder: count}
        self.worst = max(self.worst, total)

    async def leave(self, holder: Holder, revision: int) -> None:
        async with self._moved:
            if self._open is not None and (self._open.holder, self._open.revision) == (holder, revision):
                self._close(revision)

    async def died(self, holder: Holder) -> None:
        """Rule 9: the process is proven dead."""
        async with self._moved:
            self._owners.pop(holder, None)
            if self._open is not None and self._open.holder == holder:
                self._close(self._open.revision)
            else:
                self._dirty.set()

    async def _see(self, facts: tuple[Fact, ...], revision: int, *, whole: bool) -> None:
        if whole:
            self._seat = self._token = None
        for fact in facts:
            if isinstance(fact, SeatSeen) and fact.device == self.device:
                self._seat = (fact.seat, fact.revision) if fact.seat is not None else None
            elif isinstance(fact, TokenSeen) and fact.device == self.device:
                self._token = (fact.token, fact.revision) if fact.token is not None else None
        async with self._moved:
            self._view = max(self._view, revision)
            self._settle()
            self._moved.notify_all()

    def _settle(self) -> None:
        """Rules 8 and 10: close what can no longer be entered; reclaim ends its target."""
        if self._seat is None or self._seat[1] <= self._closed:
            return
        seat, revision = self._seat
        if seat.order is Order.RECLAIM:
            self._owners.pop(seat.holder, None)
            self._close(revision)
        elif self._open is None and (self._token is None or self._token[1] != revision):
            self._close(revision)

    def _close(self, revision: int) -> None:
        self._open = None
        self._closed = max(self._closed, revision)
        self._dirty.set()
        self._moved.notify_all()

    def _state(self) -> Device:
        return Device(
            driver="stub",
            capacity=self.capacity,
            chunk=1,
            epoch=self._epoch,
            closed=self._closed,
            open=self._open,
            owners=tuple(Owner(holder, Bytes(weights=count)) for holder, count in self._owners.items() if count),
            free_measured=self.capacity - sum(self._owners.values()),
        )
