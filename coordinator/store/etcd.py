"""`Store` on a real etcd, by its JSON gateway (3.4 and later)."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Sequence

from coordinator.errors import LeaseLost, StoreUnavailable
from coordinator.store import wire
from coordinator.store.access import Access
from coordinator.store.base import Changes, Compare, KeyValue, Listing, Op, TxnResult
from coordinator.store.channel import FAILED_PRECONDITION, Channel
from coordinator.store.floor import Check
from coordinator.store.transport import Etcd3Transport, Refused
from coordinator.store.watch import Watch

NOT_FOUND = 5


class EtcdStore:
    """See `base.Store`. Use it on one event loop."""

    def __init__(self, channel: Channel, *, stall: float) -> None:
        self.channel = channel
        self._stall = stall

    @classmethod
    def at(cls, access: Access, *, call_timeout: float, stall: float, check: Check) -> EtcdStore:
        """Through etcd3-py; see `coordinator.store.connect`."""
        return cls(Channel(Etcd3Transport(access), access, call_timeout=call_timeout, check=check), stall=stall)

    async def get(self, key: str) -> KeyValue | None:
        reply = await self.channel.rpc("/kv/range", {"key": wire.encode_key(key)}, wire.RangeReply)
        return wire.key_value(reply.kvs[0]) if reply.kvs else None

    async def list(self, prefix: str) -> Listing:
        reply = await self.channel.rpc("/kv/range", wire.range_body(prefix), wire.RangeReply)
        return Listing(tuple(map(wire.key_value, reply.kvs)), reply.header.revision)

    async def txn(self, compares: Sequence[Compare], then: Sequence[Op]) -> TxnResult:
        body = wire.txn_body(compares, then)
        try:
            reply = await self.channel.rpc("/kv/txn", body, wire.TxnReply, repeatable=False)
        except Refused as error:
            if error.code == NOT_FOUND:
                raise LeaseLost(f"a put names a dead lease: {error.text}", remedy="grant a new lease") from error
            raise
        return TxnResult(reply.succeeded, reply.header.revision)

    def watch(self, prefix: str, start_revision: int) -> AsyncGenerator[Changes, None]:
        return Watch(self.channel, prefix, start_revision, stall=self._stall).changes()

    async def grant_lease(self, ttl: int) -> int:
        """The id is ours and random, so a repeated request finds its first one: no lease is left over."""
        lease = secrets.randbits(62) + 1
        try:
            await self.channel.rpc("/lease/grant", {"ID": str(lease), "TTL": ttl}, wire.Reply)
        except Refused as error:
            if error.code != FAILED_PRECONDITION:  # it exists: an earlier attempt's reply was lost
                raise
        return lease

    async def keep_alive(self, lease: int) -> float:
        reply = await self.channel.rpc("/lease/keepalive", {"ID": str(lease)}, wire.KeepAliveReply)
        if reply.error:
            raise StoreUnavailable(f"keep-alive of lease {lease:x}: {reply.error.message}")
        if not reply.result or reply.result.ttl <= 0:
            raise LeaseLost(f"lease {lease:x} is gone", remedy="grant a new lease")
        return float(reply.result.ttl)

    async def revoke_lease(self, lease: int) -> None:
        try:
            await self.channel.rpc("/lease/revoke", {"ID": str(lease)}, wire.Reply)
        except Refused as error:
            if error.code != NOT_FOUND:
                raise

    async def close(self) -> None:
        await self.channel.close()
