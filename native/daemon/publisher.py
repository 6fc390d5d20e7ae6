"""This node's keys in etcd, on the daemon's own lease: put on every change, put again on a new lease.

Every write compares the key's mod_revision, so that one whose answer was lost can never land after a later one. While
an operation is open its owners count for nobody (PROTOCOL rule 4), so what changes meanwhile is put only every
`LAZY` seconds, for people to see: a switch costs one write of the device key, not one for each `map`.

What an engine says of the operation that it has left goes along in the same transaction, once and without a promise:
it never stands in the way of the node's own keys.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

import msgspec

from coordinator.errors import Ambiguous, LeaseLost, StoreError
from coordinator.store.base import Changes, Compare, Delete, Listing, ModRevision, Op, Put, Store
from coordinator.store.session import Session, open_session

log = logging.getLogger(__name__)

LAZY = 0.5
RETRY_PAUSE = 0.5


class Beside(msgspec.Struct, frozen=True):
    """Somebody else's key, to be put on his lease where its mod_revision is still `above`."""

    put: Put
    above: int


class Publisher:
    """`want` says what shall stand; `run` sees to it. None as a value: the key shall not stand."""

    def __init__(self, store: Store, lease_ttl: int) -> None:
        self._store = store
        self._ttl = lease_ttl
        self._wanted: dict[str, bytes | None] = {}
        self._standing: dict[str, tuple[bytes | None, int]] = {}
        self._beside: Sequence[Beside] = ()
        self._wake = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None

    def want(self, values: Mapping[str, bytes | None], *, urgent: bool, beside: Sequence[Beside] = ()) -> None:
        """From now on these values shall stand; what is not urgent may wait for `LAZY` seconds. `beside` is tried with
        the next transaction."""
        self._wanted.update(values)
        self._beside = (*self._beside, *beside)
        if urgent:
            self._wake.set()
        elif self._later is None:
            self._later = asyncio.get_running_loop().call_later(LAZY, self._remember)

    def stands(self, key: str) -> bool:
        """What was wanted of this key is in etcd, as far as is known."""
        return key in self._standing and self._standing[key][0] == self._wanted.get(key)

    def saw(self, news: Listing | Changes) -> None:
        """What the watch shows: a key of ours that somebody else wrote or deleted is put again."""
        if isinstance(news, Listing):
            found = {kv.key: kv.mod_revision for kv in news.kvs}
            shown = {key: found.get(key, 0) for key in self._standing}
        else:
            shown = {c.key: c.revision if c.kv else 0 for c in news.changes if news.revision > self._revision_of(c.key)}
        for key, revision in shown.items():
            if key in self._standing and self._standing[key][1] != revision:
                del self._standing[key]
                self._wake.set()

    def _revision_of(self, key: str) -> int:
        return self._standing[key][1] if key in self._standing else 0

    async def run(self) -> None:
        """Hold a lease and publish, until cancelled; then the keys go with the lease."""
        while True:
            try:
                async with open_session(self._store, self._ttl) as session:
                    log.info("publishing on lease %x", session.lease)
                    await self._publish_on(session)
            except StoreError as error:
                log.warning("cannot publish, trying again: %s", error)
                await asyncio.sleep(RETRY_PAUSE)

    async def _publish_on(self, session: Session) -> None:
        """Until the lease is lost. Keys of an earlier lease are put anew on this one."""
        self._standing.clear()
        self._wake.set()
        lost = asyncio.create_task(session.lost.wait(), name="lease lost")
        try:
            while not session.lost.is_set():
                woken = asyncio.create_task(self._wake.wait(), name="something to publish")
                try:
                    await asyncio.wait((lost, woken), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    woken.cancel()
                if self._wake.is_set():
                    self._wake.clear()
                    await self._put_all(session)
        finally:
            lost.cancel()

    async def _put_all(self, session: Session) -> None:
        while not session.lost.is_set():
            changed = {key: value for key, value in self._wanted.items() if not self.stands(key)}
            beside, self._beside = self._beside, ()
            if not changed:
                return
            try:
                await self._put(changed, session.lease, beside)
            except Ambiguous:
                for key in changed:
                    self._standing.pop(key, None)
            except StoreError as error:
                if beside:
                    log.info("not put beside our own keys: %s: %s", ", ".join(each.put.key for each in beside), error)
                    continue
                if isinstance(error, LeaseLost):
                    session.lost.set()
                    return
                log.warning("cannot publish now, trying again: %s", error)
                await asyncio.sleep(RETRY_PAUSE)

    async def _put(self, changed: Mapping[str, bytes | None], lease: int, beside: Sequence[Beside]) -> None:
        revisions = {key: await self._revision(key) for key in changed}
        compares: list[Compare] = [ModRevision(key, revision) for key, revision in revisions.items()]
        ops: list[Op] = [
            Put(key, value, lease) if value is not None else Delete(key)
            for key, value in changed.items()
            if value is not None or revisions[key]
        ]
        compares += [ModRevision(each.put.key, each.above) for each in beside]
        ops += [each.put for each in beside]
        result = await self._store.txn(compares, ops)
        if beside and not result.succeeded:
            log.info("written meanwhile: %s, or a key of ours; again without", ", ".join(e.put.key for e in beside))
            return
        for key, value in changed.items():
            if result.succeeded:
                self._standing[key] = (value, result.revision if value is not None else 0)
            else:
                self._standing.pop(key, None)
        if not result.succeeded:
            log.warning("somebody else wrote %s: is there a second daemon of this node?", ", ".join(changed))

    async def _revision(self, key: str) -> int:
        """mod_revision of what stands there; asked for where it is not known."""
        if key in self._standing:
            return self._standing[key][1]
        kv = await self._store.get(key)
        return kv.mod_revision if kv is not None else 0

    def _remember(self) -> None:
        self._later = None
        self._wake.set()
