"""A store whose calls are timed: how long etcd takes, what comes of it, and how far the watch is behind."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

from coordinator.errors import Ambiguous, LeaseLost, StoreError, StoreUnavailable
from coordinator.store.base import Changes, Compare, KeyValue, Listing, Op, Store, TxnResult

T = TypeVar("T")
Called = Callable[[str, str, float], None]
"""(call, outcome, seconds)."""
_OUTCOMES = ((StoreUnavailable, "unavailable"), (Ambiguous, "ambiguous"), (LeaseLost, "lease_lost"))
MOST = 1024
"""Writes whose way back through the watch is timed at once."""


class Lag:
    """From the answer to one of our own transactions until our watch shows it; 0 where the watch was first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._reached = 0
        self._written: deque[tuple[int, float]] = deque(maxlen=MOST)

    def wrote(self, revision: int) -> list[float]:
        if revision <= self._reached:
            return [0.0]
        self._written.append((revision, self._clock()))
        return []

    def reached(self, revision: int) -> list[float]:
        """The watch has shown everything up to `revision`."""
        self._reached = revision
        now, seen = self._clock(), []
        while self._written and self._written[0][0] <= revision:
            seen.append(now - self._written.popleft()[1])
        return seen


class ObservedStore:
    """`store`, with every call told to `called` and the revision of every write that took effect to `wrote`. Watches
    pass as they are."""

    def __init__(self, store: Store, called: Called, wrote: Callable[[int], None], clock: Callable[[], float]) -> None:
        self._store = store
        self._called = called
        self._wrote = wrote
        self._clock = clock

    async def get(self, key: str) -> KeyValue | None:
        return await self._timed("get", self._store.get(key))

    async def list(self, prefix: str) -> Listing:
        return await self._timed("list", self._store.list(prefix))

    async def txn(self, compares: Sequence[Compare], then: Sequence[Op]) -> TxnResult:
        result = await self._timed("txn", self._store.txn(compares, then))
        if result.succeeded and then:
            self._wrote(result.revision)
        return result

    def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[Changes, None]:
        return self._store.watch(prefix, start_revision)

    async def grant_lease(self, ttl: int) -> int:
        return await self._timed("grant_lease", self._store.grant_lease(ttl))

    async def keep_alive(self, lease: int) -> float:
        return await self._timed("keep_alive", self._store.keep_alive(lease))

    async def revoke_lease(self, lease: int) -> None:
        await self._timed("revoke_lease", self._store.revoke_lease(lease))

    async def close(self) -> None:
        await self._store.close()

    async def _timed(self, call: str, answer: Awaitable[T]) -> T:
        began, outcome = self._clock(), "cancelled"
        try:
            result = await answer
            outcome = "ok"
            return result
        except StoreError as error:
            outcome = next((name for kind, name in _OUTCOMES if isinstance(error, kind)), "refused")
            raise
        finally:
            self._called(call, outcome, self._clock() - began)
