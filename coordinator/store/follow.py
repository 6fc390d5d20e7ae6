"""A prefix, kept in view: list it, then every change after that; listed again when history is gone or doubt arises."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, closing

from coordinator.errors import Compacted, StoreUnavailable
from coordinator.store.base import Changes, Listing, Store
from coordinator.store.patience import Patience

log = logging.getLogger(__name__)

DOUBT_S = 3.0
"""The leader's heartbeat comes once a second: whoever hears nothing for three doubts its watch."""
RETRY_S = 0.5


async def follow(
    store: Store, prefix: str, *, doubt: float | None = DOUBT_S, current: Callable[[bool], None] = lambda _: None
) -> AsyncGenerator[Listing | Changes, None]:
    """First a `Listing`, then `Changes`; a further `Listing` replaces all that was known. Use it within `aclosing`.

    After `doubt` seconds of silence (None: never) the watch is opened anew and the prefix listed; the listing is
    yielded only if it tells something new. `current(False)` is called when what was told may not be so any more;
    `current(True)` when a listing finds that it still is, else the next update says what is. Goes on while etcd is
    away; raises `StoreError` where etcd refuses. A listing whose revision is below an earlier one means that etcd lost
    data (PROTOCOL rule 13). Where it lost data and has come further since, a watch resumes as if nothing had happened:
    then the first key that was born anew without having died tells, at the latest the leader's heartbeat.
    """
    view = _View()
    while True:
        listing = await _list(store, prefix)
        if view.replace(listing):
            yield listing
        else:
            current(True)
        try:
            async with aclosing(store.watch(prefix, listing.revision + 1)) as watch:
                with closing(Patience(doubt)) as patience:
                    while True:
                        with patience:
                            changes = await anext(watch)
                        view.apply(changes)
                        yield changes
        except _AnotherLife:
            log.warning("the store under %s is not the one that was followed: listing again", prefix)
        except TimeoutError:
            log.debug("nothing heard under %s for %s s: listing again", prefix, doubt)
        except Compacted as error:
            log.warning("watch on %s: %s", prefix, error)
        current(False)


class _AnotherLife(Exception):
    """What came is not the continuation of what was known."""


class _View:
    """What the follower was told: mod_revision and create_revision by key."""

    def __init__(self) -> None:
        self._revision = 0
        self._keys: dict[str, tuple[int, int]] | None = None

    def replace(self, listing: Listing) -> bool:
        """False where the listing tells nothing new."""
        keys = {kv.key: (kv.mod_revision, kv.create_revision) for kv in listing.kvs}
        news = keys != self._keys or listing.revision < self._revision
        self._keys, self._revision = keys, listing.revision
        return news

    def apply(self, changes: Changes) -> None:
        """Raises _AnotherLife."""
        self._revision = changes.revision
        known = self._keys if self._keys is not None else {}
        for change in changes.changes:
            kv = change.kv
            if kv is None:
                known.pop(change.key, None)
                continue
            born = known.get(change.key, (0, kv.create_revision))[1]
            if born != kv.create_revision:
                self._keys = None
                raise _AnotherLife
            known[change.key] = (change.revision, kv.create_revision)


async def _list(store: Store, prefix: str) -> Listing:
    """Until etcd answers."""
    away = False
    while True:
        try:
            listing = await store.list(prefix)
        except StoreUnavailable as error:
            log.log(logging.DEBUG if away else logging.WARNING, "cannot list %s: %s", prefix, error)
            away = True
            await asyncio.sleep(RETRY_S)
            continue
        if away:
            log.info("etcd is back: listed %s at revision %d", prefix, listing.revision)
        return listing
