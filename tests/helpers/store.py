"""Small verbs for tests of the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from coordinator.errors import Ambiguous, StoreUnavailable
from coordinator.store.base import Changes, CreateRevision, Listing, Put, Store
from coordinator.store.follow import follow

T = TypeVar("T")
PATIENCE_S = 60.0
"""Until a test gives up waiting: never a measure of speed."""


async def put(store: Store, key: str, value: bytes = b"", lease: int = 0) -> int:
    """Unconditionally; the revision of the write."""
    return (await store.txn([], [Put(key, value, lease)])).revision


async def put_once(store: Store, key: str) -> None:
    """Exactly once, through whatever happens to etcd meanwhile."""
    while True:
        try:
            await store.txn([CreateRevision(key, 0)], [Put(key, b"")])
            return
        except (Ambiguous, StoreUnavailable):
            continue  # the compare makes a second write harmless


async def take(source: AsyncGenerator[T, None], count: int) -> list[T]:
    """The next `count` items."""
    async with asyncio.timeout(PATIENCE_S):
        return [await anext(source) for _ in range(count)]


async def appears(store: Store, key: str) -> None:
    """Returns once the key stands."""
    async with asyncio.timeout(PATIENCE_S), aclosing(follow(store, key, doubt=None)) as updates:
        async for update in updates:
            found = update.kvs if isinstance(update, Listing) else [change.kv for change in update.changes]
            if any(kv and kv.key == key for kv in found):
                return


async def changes_until(store: Store, prefix: str, start: int, last: int) -> list[Changes]:
    """What a watch from `start` yields, up to and with revision `last`."""
    seen: list[Changes] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(store.watch(prefix, start)) as watch:
        async for changes in watch:
            seen.append(changes)
            if changes.revision >= last:
                break
    return seen


def keys_of(batches: list[Changes]) -> list[str]:
    return [change.key for changes in batches for change in changes.changes]
