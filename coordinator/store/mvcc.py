"""etcd's data model without etcd: revisions, leases, compaction. No clock, no asyncio: time is handed in.

The rules are those measured on etcd 3.4.23 and 3.5.1 and held by the property test that runs the same scripts on both
(https://etcd.io/docs/v3.5/learning/api/): an empty store stands at revision 1; all writes of one transaction share one
revision; a transaction that changes nothing takes none; all keys of one lease vanish in one revision, in key order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from coordinator.errors import Compacted, LeaseLost, StoreError
from coordinator.store.base import (
    Change,
    Changes,
    Compare,
    CreateRevision,
    Delete,
    KeyValue,
    Listing,
    ModRevision,
    Op,
    Put,
    TxnResult,
    ValueIs,
)

MAX_TXN_OPS = 128
"""etcd's `--max-txn-ops`."""


@dataclass
class Lease:
    ttl: int
    expires: float
    keys: set[str] = field(default_factory=set)


class Mvcc:
    """The state of one etcd: every mutation returns the `Changes` it made, None where it changed nothing."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self._kvs: dict[str, KeyValue] = {}
        self._history: list[Changes] = []
        self._leases: dict[int, Lease] = {}

    def get(self, key: str) -> KeyValue | None:
        return self._kvs.get(key)

    def list(self, prefix: str) -> Listing:
        keys = sorted((key for key in self._kvs if key.startswith(prefix)), key=_byte_order)
        return Listing(tuple(self._kvs[key] for key in keys), self.revision)

    def since(self, revision: int) -> tuple[Changes, ...]:
        """All changes from `revision` on. Raises `Compacted` where history does not reach back that far; it has to
        reach one revision further, because a deletion at the compacted revision is lost (as `store.watch` says)."""
        if max(1, revision - 1) < self.compacted:
            raise Compacted(self.compacted)
        return tuple(changes for changes in self._history if changes.revision >= revision)

    def txn(self, compares: Sequence[Compare], then: Sequence[Op]) -> tuple[TxnResult, Changes | None]:
        """Raises `LeaseLost` or `StoreError`, and then has changed nothing."""
        _check_ops(compares, then)
        if not all(self._holds(compare) for compare in compares):
            return TxnResult(False, self.revision), None
        for op in then:
            if isinstance(op, Put) and op.lease and op.lease not in self._leases:
                raise LeaseLost(f"put {op.key}: lease {op.lease:x} does not exist", remedy="grant a new lease")
        changes = self._commit(change for op in then for change in self._apply(op, self.revision + 1))
        return TxnResult(True, self.revision), changes

    def grant(self, lease: int, ttl: int, now: float) -> None:
        if lease in self._leases:
            raise StoreError(f"lease {lease:x} already exists")
        self._leases[lease] = Lease(ttl, now + ttl)

    def keep_alive(self, lease: int, now: float) -> int:
        """The lease's TTL in seconds, counted from `now` again."""
        held = self._lease(lease)
        held.expires = now + held.ttl
        return held.ttl

    def revoke(self, lease: int) -> Changes | None:
        keys = sorted(self._lease(lease).keys, key=_byte_order)
        del self._leases[lease]
        return self._commit(change for key in keys for change in self._apply(Delete(key), self.revision + 1))

    def due(self) -> tuple[float, int] | None:
        """When the next lease expires, and which."""
        return min(((held.expires, lease) for lease, held in self._leases.items()), default=None)

    def renew_leases(self, now: float) -> None:
        """Every lease has its full TTL again, as after a change of etcd's leader (etcd#9395)."""
        for held in self._leases.values():
            held.expires = now + held.ttl

    def compact(self, revision: int) -> None:
        """Forget changes before `revision`."""
        if revision <= self.compacted:
            raise Compacted(self.compacted)
        if revision > self.revision:
            raise StoreError(f"revision {revision} is in the future of {self.revision}")
        self.compacted = revision
        self._history = [changes for changes in self._history if changes.revision >= revision]

    def _lease(self, lease: int) -> Lease:
        held = self._leases.get(lease)
        if held is None:
            raise LeaseLost(f"lease {lease:x} does not exist", remedy="grant a new lease")
        return held

    def _holds(self, compare: Compare) -> bool:
        kv = self._kvs.get(compare.key)
        match compare:
            case CreateRevision():
                return (kv.create_revision if kv else 0) == compare.revision
            case ModRevision():
                return (kv.mod_revision if kv else 0) == compare.revision
            case ValueIs():
                return kv is not None and kv.value == compare.value

    def _apply(self, op: Op, revision: int) -> Iterable[Change]:
        match op:
            case Put():
                self._detach(op.key)
                old = self._kvs.get(op.key)
                kv = KeyValue(op.key, op.value, old.create_revision if old else revision, revision, op.lease)
                self._kvs[op.key] = kv
                if op.lease:
                    self._leases[op.lease].keys.add(op.key)
                yield Change(op.key, kv, revision)
            case Delete():
                for key in [kv.key for kv in self.list(op.key).kvs] if op.prefix else [op.key]:
                    self._detach(key)
                    if self._kvs.pop(key, None):
                        yield Change(key, None, revision)

    def _detach(self, key: str) -> None:
        held = self._leases.get(self._kvs[key].lease) if key in self._kvs else None
        if held:
            held.keys.discard(key)

    def _commit(self, applied: Iterable[Change]) -> Changes | None:
        changes = tuple(applied)
        if not changes:
            return None
        self.revision += 1
        self._history.append(Changes(changes, self.revision))
        return self._history[-1]


def _byte_order(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _check_ops(compares: Sequence[Compare], then: Sequence[Op]) -> None:
    """What etcd refuses before it looks at a single key."""
    if max(len(compares), len(then)) > MAX_TXN_OPS:
        raise StoreError("too many operations in one transaction", remedy=f"at most {MAX_TXN_OPS}")
    puts = [op.key for op in then if isinstance(op, Put)]
    deletes = [op for op in then if isinstance(op, Delete)]
    if any(not key for key in puts):
        raise StoreError("a put needs a key")
    written = len(set(puts)) < len(puts) or any(
        key.startswith(op.key) if op.prefix else key == op.key for key in puts for op in deletes
    )
    if written:
        raise StoreError("a key is written twice in one transaction")
