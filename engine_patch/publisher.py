"""The newest value of each of an engine's keys, on its lease: one writer, a burst in one transaction.

A put whose answer was lost may still be applied, even after a later one was sent; so each compares the revisions that
this writer left behind, and of two such only one can take effect.

The daemon may put a value in a transaction of its own (`entrust`): then this writer looks for it in the watch, and puts
it itself only where it does not come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection

from coordinator.core.model import Holder, Spec, Value
from coordinator.errors import Ambiguous, LeaseLost, SchemaError, StoreError, StoreUnavailable
from coordinator.store import keys
from coordinator.store.base import Changes, KeyValue, Listing, ModRevision, Put, Store
from coordinator.store.codec import decode, encode
from native.protocol import Answer

log = logging.getLogger("vllm.vnpu.agent")

PAUSE_S = 0.5
ENTRUSTED_S = 0.5
"""A value that was entrusted and does not show by then is put from here."""
ALONE_S = 60.0
"""So long nothing is entrusted after that: this daemon may not write there (`docs/security.md`), or has no etcd."""


class Publisher:
    """`registered` is set once the keys stood on a lease; `rival` is another process that uses this engine's id."""

    def __init__(self, store: Store, holder: Holder, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._holder = holder
        self._clock = clock
        self._values: dict[str, bytes] = {}
        self._due: dict[str, float] = {}
        self._known: dict[str, int] | None = None
        self._flying: Collection[str] = ()
        """Keys whose put is on its way: which revision it leaves is not known yet."""
        self._lease: int | None = None
        self._entrusted: dict[str, bytes] = {}
        self._shown: dict[str, KeyValue] = {}
        self._alone_until = 0.0
        self._own = keys.spec(holder.engine).removesuffix("spec")
        self._wake = asyncio.Event()
        self.registered = asyncio.Event()
        self.rival: Spec | None = None

    def put(self, key: str, value: Value, within: float = 0.0) -> None:
        """Put `value` in `within` seconds at the latest; a newer value of the same key takes its place. What was
        entrusted may have come already, or is waited for."""
        data = self._values[key] = encode(value)
        expected = self._entrusted.get(key) == data
        if not expected:
            self._entrusted.pop(key, None)
        due = self._clock() + (ENTRUSTED_S if expected else within)
        self._due[key] = min(due, self._due.get(key, due))
        self._came(key)
        self._wake.set()

    def hasten(self, key: str) -> None:
        """What waits to be put there is put now."""
        if key in self._due:
            self._due[key] = self._clock()
            self._wake.set()

    def entrust(self, key: str, value: Value) -> Answer | None:
        """What the daemon needs to put `value` in our stead; `put` it all the same when it may stand. None: it is not
        asked to, since we hold no lease, put there ourselves just now, or it did not come last time. What waited to be
        put there is given up."""
        known = self._known.get(key) if self._known is not None else None
        if self._lease is None or known is None or key in self._flying or self._clock() < self._alone_until:
            return None
        self._due.pop(key, None)
        data = self._entrusted[key] = encode(value)
        return Answer(data, known)

    def saw(self, news: Listing | Changes) -> None:
        """What the watch shows of this engine's keys."""
        if isinstance(news, Listing):
            self._shown = {kv.key: kv for kv in news.kvs if kv.key.startswith(self._own)}
            changed = set(self._shown)
        else:
            own = [change for change in news.changes if change.key.startswith(self._own)]
            changed = {change.key for change in own}
            for change in own:
                if change.kv is not None:
                    self._shown[change.key] = change.kv
                else:
                    self._shown.pop(change.key, None)
        for key in changed:
            self._came(key)

    def shown(self, key: str) -> int:
        """mod_revision of what the watch shows there; 0: nothing."""
        kv = self._shown.get(key)
        return kv.mod_revision if kv is not None else 0

    def _came(self, key: str) -> None:
        """Whether what was entrusted stands: then it needs no put of ours."""
        shown, wanted = self._shown.get(key), self._entrusted.get(key)
        if shown is None or self._known is None or shown.lease != self._lease:
            return
        if key in self._due and shown.value == wanted == self._values.get(key):
            self._known[key] = shown.mod_revision
            del self._due[key], self._entrusted[key]

    def move(self, lease: int | None) -> None:
        """All keys go onto another lease; None: there is none now."""
        self._lease, self._known = lease, None
        self._entrusted.clear()
        if lease is not None:
            self._due = dict.fromkeys(self._values, self._clock())
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._until_due()
            try:
                await self._flush()
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
        lease, known, values = self._lease, self._known, {key: self._values[key] for key in self._ripe()}
        if lease is None or not values:
            return
        compares = [ModRevision(key, known.get(key, 0)) for key in values]
        self._flying = values
        try:
            result = await self._store.txn(compares, [Put(key, value, lease) for key, value in values.items()])
        except LeaseLost:
            if lease == self._lease:  # or the answer is an earlier lease's, and this one lives
                self._lease = None
            return
        finally:
            self._flying = ()
        if lease != self._lease:
            return
        if not result.succeeded:
            self._known = None
            return
        known.update(dict.fromkeys(values, result.revision))
        self._due = {key: due for key, due in self._due.items() if values.get(key) != self._values[key]}
        self.registered.set()

    def _ripe(self) -> list[str]:
        """All that waits, in one transaction; but what was entrusted only when it has not come."""
        now = self._clock()
        late = [key for key in self._entrusted if self._due.get(key, now + 1) <= now]
        for key in late:
            log.info("the daemon did not put %s", key)
            self._alone_until = now + ALONE_S
            del self._entrusted[key]
        return [key for key in self._due if key not in self._entrusted]

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
