"""A leader for tests: grants and reclaims as PROTOCOL rules 2, 3 and 10 say, when the test tells it to."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from coordinator.core.model import Bytes, Device, Epoch, Holder, Order, Seat, Spec, Token
from coordinator.store import keys
from coordinator.store.base import Compare, CreateRevision, Delete, ModRevision, Op, Put, Store, ValueIs
from coordinator.store.codec import decode, encode
from coordinator.store.epoch import ensure_epoch
from coordinator.store.follow import follow

PATIENCE_S = 60.0
"""Until a test gives up waiting: never a measure of speed."""
LONG_TTL = 300
"""Seconds; a lease that no test outlives, so that nobody has to keep it alive."""
_ids = itertools.count()


@dataclass
class Registered:
    """An engine's spec in etcd: what a grant needs of it."""

    holder: Holder
    devices: tuple[str, ...]
    lease: int
    spec_revision: int


@dataclass(frozen=True)
class Granted:
    """The fence of a grant; `revision` is that of all its seats."""

    epoch: str
    revision: int


@dataclass
class Leader:
    """One elected coordinator without a scheduler. Devices are named `<node>/<device>`."""

    store: Store
    election_key: str = field(default_factory=lambda: f"{keys.ELECTION}test-{next(_ids)}")
    election_revision: int = 0

    async def elect(self) -> None:
        result = await self.store.txn([CreateRevision(self.election_key, 0)], [Put(self.election_key, b"test")])
        assert result.succeeded
        self.election_revision = result.revision

    async def register(
        self, engine: str, devices: Sequence[str], *, nonce: str = "", ttl: int = LONG_TTL, size: int = 64 << 20
    ) -> Registered:
        """Put the spec of an engine on a new lease, as its agent does; without keep-alives."""
        holder = Holder(engine, nonce or secrets.token_hex(8))
        lease = await self.store.grant_lease(ttl)
        spec = Spec(
            holder=holder,
            model=engine,
            url="http://127.0.0.1:1",
            devices=tuple(devices),
            pid=os.getpid(),
            boot_id="test",
            footprint=Bytes(weights=size),
            digest=f"digest-{engine}",
        )
        result = await self.store.txn([], [Put(keys.spec(engine), encode(spec), lease)])
        return Registered(holder, tuple(devices), lease, result.revision)

    async def register_again(self, engine: Registered, *, ttl: int = LONG_TTL) -> Registered:
        """The same process after its lease was lost."""
        return await self.register(engine.holder.engine, engine.devices, nonce=engine.holder.nonce, ttl=ttl)

    async def grant(self, engine: Registered, order: Order, size: int, *, limit_s: float = 60.0) -> Granted:
        """Rule 3, then rule 2: when every device of the holder is closed, one transaction for all of them."""
        for device in engine.devices:
            await self.closed(device)
        granted = await self.try_grant(engine, order, size, limit_s=limit_s)
        assert granted is not None, "some compare of the grant failed"
        return granted

    async def try_grant(self, engine: Registered, order: Order, size: int, *, limit_s: float = 60.0) -> Granted | None:
        """Rule 2 alone; None where a compare fails."""
        epoch, compares = await self._compares(engine.devices)
        compares.append(ModRevision(keys.spec(engine.holder.engine), engine.spec_revision))
        ops: list[Op] = []
        for device in engine.devices:
            token = Token(holder=engine.holder, lease=engine.lease, order=order, bytes=size, cause="test")
            seat = Seat(holder=engine.holder, lease=engine.lease, order=order, bytes=size, limit_s=limit_s)
            ops += [Put(keys.token(device), encode(token), engine.lease), Put(keys.seat(device), encode(seat))]
        result = await self.store.txn(compares, ops)
        return Granted(epoch.id, result.revision) if result.succeeded else None

    async def reclaim(self, engine: Registered) -> Granted:
        """Rule 10."""
        epoch, compares = await self._compares(engine.devices)
        ops: list[Op] = []
        for device in engine.devices:
            seat = Seat(holder=engine.holder, lease=0, order=Order.RECLAIM, bytes=0, limit_s=30.0)
            ops += [Delete(keys.token(device)), Put(keys.seat(device), encode(seat))]
        result = await self.store.txn(compares, ops)
        assert result.succeeded, "some compare of the reclaim failed"
        return Granted(epoch.id, result.revision)

    async def closed(self, device: str, fence: Granted | None = None) -> Device:
        """Until the daemon's key says that `fence` (None: whatever seat stands) is over."""
        seat = await self.store.get(keys.seat(device))
        revision = fence.revision if fence is not None else seat.mod_revision if seat is not None else 0
        epoch = (await ensure_epoch(self.store)).id
        return await self.until(device, lambda state: state.epoch == epoch and state.closed >= revision)

    async def until(self, device: str, holds: Callable[[Device], bool]) -> Device:
        """Until the device key is there and `holds`; its value then."""
        key = keys.device(device)
        state: Device | None = None
        try:
            async with asyncio.timeout(PATIENCE_S), aclosing(follow(self.store, key)) as news:
                async for _ in news:
                    kv = await self.store.get(key)
                    state = decode(Device, kv.value) if kv is not None else None
                    if state is not None and holds(state):
                        return state
        except TimeoutError:
            raise AssertionError(f"in vain; {key} is {state}") from None
        raise AssertionError("the watch ended")

    async def device(self, device: str) -> Device | None:
        kv = await self.store.get(keys.device(device))
        return decode(Device, kv.value) if kv is not None else None

    async def _compares(self, devices: Sequence[str]) -> tuple[Epoch, list[Compare]]:
        epoch = await ensure_epoch(self.store)
        compares: list[Compare] = [
            CreateRevision(self.election_key, self.election_revision),
            ValueIs(keys.EPOCH, encode(epoch)),
        ]
        for device in devices:
            seat = await self.store.get(keys.seat(device))
            compares.append(ModRevision(keys.seat(device), seat.mod_revision if seat is not None else 0))
        return epoch, compares
