"""The newest value of each of an engine's keys, on its lease: one writer, a burst in one transaction.

A put whose answer was lost may still be applied, even after a later one was sent; so each compares the revisions that
this writer left behind, and of two such only one can take effect.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from coordinator.core.model import Holder, Spec, Value
from coordinator.errors import Ambiguous, LeaseLost, SchemaError, StoreError, StoreUnavailable
from coordinator.store import keys
from coordinator.store.base import ModRevision, Put, Store
from coordinator.store.codec import decode, encode

log = logging.getLogger("vllm.vnpu.agent")

PAUSE_S = 0.5


class Publisher:
    """`registered` is set once the keys stood on a lease; `rival` is another process that uses this engine's id."""

    def __init__(self, store: Store, holder: Holder, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._holder = holder
        self._clock = clock
        self._values: dict[str, bytes] = {}
        self._due: dict[str, float] = {}
        self._known: dict[str, int] | None = None
        self._lease: int | None = None
        self._wake = asyncio.Event()
        self.registered = asyncio.Event()
        self.rival: Spec | None = None

    def put(self, key: str, value: Value, within: float = 0.0) -> None:
        """Put `value` in `within` seconds at the latest; a newer value of the same key takes its place."""
        due = self._clock() + within
        self._values[key] = encode(value)
        self._due[key] = min(due, self._due.get(key, due))
        self._wake.set()

    def move(self, lease: int | None) -> None:
        """All keys go onto another lease; None: there is none now."""
        self._lease, self._known = lease, None
        if lease is not None:
            self._due = dict.fromkeys(self._values, self._clock())
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._until_due()
            try:
                await self._flush()
            except LeaseLost:
                self._lease = None
            except StoreError as error:
                if not self.registered.is_set() and not isinstance(error, (StoreUnavailable, Ambiguous)):
                    raise
                log.warning("cannot publish: %s", error)  # whatever etcd says, residents serve (PROTOCOL rule 14)
                self._known = None
                await asyncio.sleep(PAUSE_S)

    async def _until_due(self) -> None:
        while True:
            self._wake.clear()
            left = None
            if self._lease is not None and self._due:
                left = min(self._due.values()) - self._clock()
                if left <= 0:
                    return
            try:
                async with asyncio.timeout(left):
                    await self._wake.wait()
            except TimeoutError:
                return

    async def _flush(self) -> None:
        if self._known is None:
            known = await self._look()
            if self.rival is not None:
                await asyncio.sleep(PAUSE_S)
                return
            self._known = known
        lease, known, values = self._lease, self._known, {key: self._values[key] for key in self._due}
        if lease is None or not values:
            return
        compares = [ModRevision(key, known.get(key, 0)) for key in values]
        result = await self._store.txn(compares, [Put(key, value, lease) for key, value in values.items()])
        if lease != self._lease:
            return
        if not result.succeeded:
            self._known = None
            return
        known.update(dict.fromkeys(values, result.revision))
        self._due = {key: due for key, due in self._due.items() if values.get(key) != self._values[key]}
        self.registered.set()

    async def _look(self) -> dict[str, int]:
        """What stands under this engine's keys: revisions by key."""
        spec_key = keys.spec(self._holder.engine)
        listing = await self._store.list(spec_key.removesuffix("spec"))
        standing = {kv.key: kv for kv in listing.kvs}
        self.rival = None
        if spec_key in standing:
            try:
                spec = decode(Spec, standing[spec_key].value)
            except SchemaError:
                log.warning("%s does not decode: it is written anew", spec_key)
            else:
                self.rival = spec if spec.holder != self._holder else None
        return {key: kv.mod_revision for key, kv in standing.items()}
