"""What vNPU needs of a store: etcd's semantics, six verbs. `store.etcd` and `store.memory` pass one contract suite.

Semantics relied upon (measured on 3.4.23 and 3.5.1): all puts of one transaction share one revision, and so do all
deletions by one lease; a put on a dead lease fails the whole transaction; a watch delivers every change once, in order,
a revision whole.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import msgspec


class KeyValue(msgspec.Struct, frozen=True):
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


class Listing(msgspec.Struct, frozen=True):
    """A consistent read: every key under a prefix as of `revision`, in key order."""

    kvs: tuple[KeyValue, ...]
    revision: int


class Change(msgspec.Struct, frozen=True):
    """One key changed; `kv` is None where it was deleted. `revision` is the change's mod_revision."""

    key: str
    kv: KeyValue | None
    revision: int


class Changes(msgspec.Struct, frozen=True):
    """All changes of one revision under the watched prefix."""

    changes: tuple[Change, ...]
    revision: int


class CreateRevision(msgspec.Struct, frozen=True):
    """Compare: the key's create revision equals `revision` (0: the key does not exist)."""

    key: str
    revision: int


class ModRevision(msgspec.Struct, frozen=True):
    """Compare: the key's mod revision equals `revision` (0: the key does not exist)."""

    key: str
    revision: int


class ValueIs(msgspec.Struct, frozen=True):
    """Compare: the key exists and its value equals `value`."""

    key: str
    value: bytes


Compare = CreateRevision | ModRevision | ValueIs


class Put(msgspec.Struct, frozen=True):
    key: str
    value: bytes
    lease: int = 0


class Delete(msgspec.Struct, frozen=True):
    """Delete one key, or with `prefix` every key that starts with it."""

    key: str
    prefix: bool = False


Op = Put | Delete


class TxnResult(msgspec.Struct, frozen=True):
    """`revision` is the store's revision after the transaction; where `succeeded` and it wrote, that of its writes."""

    succeeded: bool
    revision: int


class Store(Protocol):
    """Every call is bounded by a deadline and raises `StoreUnavailable` when no endpoint answers within it."""

    async def get(self, key: str) -> KeyValue | None:
        """Linearizable read of one key."""
        ...

    async def list(self, prefix: str) -> Listing:
        """Linearizable read of all keys under `prefix`."""
        ...

    async def txn(self, compares: Sequence[Compare], then: Sequence[Op]) -> TxnResult:
        """All of `then` if all `compares` hold, else nothing. Raises `LeaseLost` when an op names a dead lease,
        `Ambiguous` when the answer was lost, `StoreUnavailable` when it certainly was not applied."""
        ...

    def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[Changes, None]:
        """Every change under `prefix` from `start_revision` (at least 1) on, exactly once, in order, resumed across
        broken connections and server restarts. Raises `Compacted` when history is gone, and its kind `Rewound`
        where the store has not come that far: it lost its data. Use it within `contextlib.aclosing`, so that the
        server's watch ends when yours does."""
        ...

    async def grant_lease(self, ttl: int) -> int:
        """A new lease of `ttl` seconds; returns its id (random, chosen by the client)."""
        ...

    async def keep_alive(self, lease: int) -> float:
        """Renew once; returns the granted TTL in seconds. Raises `LeaseLost` when it is gone."""
        ...

    async def revoke_lease(self, lease: int) -> None:
        """Revoke; a lease that is gone already is fine."""
        ...

    async def close(self) -> None: ...
