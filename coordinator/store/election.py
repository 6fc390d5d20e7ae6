"""Who leads: the oldest key under a prefix (after etcd's `concurrency.Election`, and compatible with it).

A candidate puts `<prefix><lease in hex>` on its session's lease; the lowest create revision leads. Being elected is not
mutual exclusion: every write of a leader compares `CreateRevision(key) == create_revision` within its own transaction.
(https://pkg.go.dev/go.etcd.io/etcd/client/v3/concurrency#Election)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

import msgspec

from coordinator.errors import Ambiguous, LeaseLost, StoreError
from coordinator.store import keys
from coordinator.store.base import Changes, Compare, CreateRevision, Delete, KeyValue, Listing, Put, Store
from coordinator.store.follow import DOUBT_S, follow
from coordinator.store.session import Session

log = logging.getLogger(__name__)
T = TypeVar("T")


class Leadership(msgspec.Struct, frozen=True):
    """Proof to be compared in every write of a leader."""

    key: str
    create_revision: int

    def holds(self) -> CreateRevision:
        return CreateRevision(self.key, self.create_revision)


class Election:
    """One candidate; `value` is what observers see of it while it leads."""

    def __init__(
        self,
        store: Store,
        session: Session,
        value: bytes,
        *,
        prefix: str = keys.ELECTION,
        doubt: float | None = DOUBT_S,
    ) -> None:
        """`prefix` ends with a slash. `doubt` as in `follow`."""
        self.key = f"{prefix}{session.lease:x}"
        self._store = store
        self._session = session
        self._value = value
        self._prefix = prefix
        self._doubt = doubt

    async def campaign(self) -> Leadership:
        """Waits until elected. Cancelled, it withdraws. Raises `LeaseLost` when the session ends first."""
        try:
            mine = Leadership(self.key, await self._stand())
            await self._before_lost(self._until_first(mine))
        except BaseException:
            await self._withdraw([])
            raise
        log.info("elected: %s at revision %d", mine.key, mine.create_revision)
        return mine

    async def until_lost(self, mine: Leadership) -> None:
        """Returns when this leadership is over: resigned, expired, or its session lost."""
        try:
            await self._before_lost(self._until_gone(mine))
        except LeaseLost:
            return

    async def resign(self, mine: Leadership) -> None:
        """Let the next one lead. Where etcd does not answer, the end of the session does it."""
        await self._withdraw([mine.holds()])

    async def _withdraw(self, compares: list[Compare]) -> None:
        """The key is named after our lease: nobody else's can be meant."""
        try:
            await self._store.txn(compares, [Delete(self.key)])
        except StoreError as error:
            log.info("withdrawing %s is left to the lease: %s", self.key, error)

    async def _stand(self) -> int:
        """The create revision of our key, put now or by an attempt whose reply was lost."""
        while True:
            try:
                put = Put(self.key, self._value, self._session.lease)
                result = await self._store.txn([CreateRevision(self.key, 0)], [put])
                if result.succeeded:
                    return result.revision
            except Ambiguous:
                log.info("standing for election: reply lost, reading back")
            standing = await self._store.get(self.key)
            if standing:
                return standing.create_revision

    async def _until_first(self, mine: Leadership) -> None:
        async with aclosing(_candidates(self._store, self._prefix, self._doubt)) as views:
            async for candidates in views:
                if self.key not in candidates or candidates[self.key].create_revision != mine.create_revision:
                    raise LeaseLost(f"{self.key} is gone", remedy="open a new session")
                if _leader(candidates) == candidates[self.key]:
                    return

    async def _until_gone(self, mine: Leadership) -> None:
        async with aclosing(_candidates(self._store, mine.key, self._doubt)) as views:
            async for candidates in views:
                if mine.key not in candidates or candidates[mine.key].create_revision != mine.create_revision:
                    return

    async def _before_lost(self, work: Awaitable[T]) -> T:
        """Raises `LeaseLost` when the session is lost before `work` is done."""
        working = asyncio.ensure_future(work)
        losing = asyncio.create_task(self._session.lost.wait())
        try:
            await asyncio.wait((working, losing), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise LeaseLost(f"lease {self._session.lease:x} was lost", remedy="open a new session")
        finally:
            working.cancel()
            losing.cancel()
            await asyncio.gather(working, losing, return_exceptions=True)


async def observe(
    store: Store, prefix: str = keys.ELECTION, *, doubt: float | None = DOUBT_S
) -> AsyncGenerator[KeyValue | None, None]:
    """The leader's key and value now, and again whenever that changes; None while nobody leads."""
    unseen = KeyValue("", b"", 0, 0)
    last: KeyValue | None = unseen
    async with aclosing(_candidates(store, prefix, doubt)) as views:
        async for candidates in views:
            leader = _leader(candidates)
            if leader != last:
                last = leader
                yield leader


def _leader(candidates: dict[str, KeyValue]) -> KeyValue | None:
    return min(candidates.values(), key=lambda kv: (kv.create_revision, kv.key), default=None)


async def _candidates(store: Store, prefix: str, doubt: float | None) -> AsyncGenerator[dict[str, KeyValue], None]:
    """Everything under `prefix`, whenever it changes. Not a copy."""
    candidates: dict[str, KeyValue] = {}
    async with aclosing(follow(store, prefix, doubt=doubt)) as updates:
        async for update in updates:
            match update:
                case Listing(kvs):
                    candidates = {kv.key: kv for kv in kvs}
                case Changes(changes):
                    for change in changes:
                        candidates.pop(change.key, None)
                        if change.kv:
                            candidates[change.key] = change.kv
            yield candidates
