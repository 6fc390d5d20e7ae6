"""Carries out what the scheduler orders: a decision is one transaction, its outcome is an event.

A transaction is sent once. Where its answer is lost, the seats are read: they say whether it took effect, because every
transaction writes them and compares them (PROTOCOL rules 2 and 10). A late arrival of a transaction that was given up
for lost is harmless for the same reason: either it finds the seats as it wants them, and the watch shows it, or it
fails.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from coordinator.core.commands import Direct, Grant, Reclaim
from coordinator.core.events import Granted, GrantRefused
from coordinator.core.model import Decision, Epoch, Order, Seat, Token, Value
from coordinator.core.settings import DECISION_RING
from coordinator.errors import Ambiguous, LeaseLost, SchemaError, StoreError, StoreUnavailable
from coordinator.store import keys
from coordinator.store.base import Compare, CreateRevision, Delete, ModRevision, Op, Put, Store, ValueIs
from coordinator.store.codec import decode, encode

log = logging.getLogger(__name__)

READ_BACK_S = 30.0
"""How long the outcome of a transaction is sought; then the scheduler goes on by what the watch shows."""
_PAUSE_S = 0.1
_MOST_PAUSE_S = 2.0


class _Written(msgspec.Struct, frozen=True):
    """A value that a transaction puts, and the revision that it must lie above."""

    value: Value
    above: int


class Effects:
    """`perform` one decision. `unix_time` stamps its record; nothing depends on it."""

    def __init__(
        self, store: Store, *, unix_time: Callable[[], float] = time.time, read_back_s: float = READ_BACK_S
    ) -> None:
        self._store = store
        self._unix_time = unix_time
        self._read_back_s = read_back_s

    async def perform(self, command: Grant | Reclaim | Direct) -> Granted | GrantRefused:
        """One transaction; the answer is the event for the inbox. Raises nothing but cancellation."""
        written = _written(command)
        try:
            result = await self._store.txn(_compares(command), self._ops(command, written))
        except Ambiguous:
            return await self._sought(command, written)
        except (StoreUnavailable, LeaseLost) as error:
            return self._refused(command, str(error))
        except StoreError as error:
            log.exception("transaction %d is impossible", command.id)
            return self._refused(command, str(error))
        if not result.succeeded:
            return self._refused(command, "the world moved on: what it compares, or the leader, changed")
        return self._granted(command, result.revision)

    def _ops(self, command: Grant | Reclaim | Direct, written: Mapping[str, _Written]) -> list[Op]:
        ops: list[Op] = [Put(key, encode(each.value)) for key, each in written.items()]
        if not isinstance(command, Direct):
            ops += [_token_op(command, keys.token(at.device)) for at in command.seats]
        decision = msgspec.structs.replace(command.decision, at=self._unix_time())
        ops.append(Put(decision_key(decision), encode(decision)))
        return ops

    async def _sought(
        self, command: Grant | Reclaim | Direct, written: Mapping[str, _Written]
    ) -> Granted | GrantRefused:
        """What became of a transaction whose answer was lost."""
        log.warning("the answer to transaction %d is lost: reading what it writes", command.id)
        pause = _PAUSE_S
        try:
            async with asyncio.timeout(self._read_back_s):
                while True:
                    try:
                        return await self._read_back(command, written)
                    except StoreUnavailable as error:
                        log.warning("cannot read what transaction %d writes yet: %s", command.id, error)
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _MOST_PAUSE_S)
        except TimeoutError:
            return self._refused(command, "its outcome is unknown; the watch will show it")

    async def _read_back(
        self, command: Grant | Reclaim | Direct, written: Mapping[str, _Written]
    ) -> Granted | GrantRefused:
        """It took effect exactly if all it writes is there, under one revision above those it compared."""
        revisions = set()
        for key, each in written.items():
            found = await self._store.get(key)
            if found is None or found.mod_revision <= each.above or not _same(found.value, each.value):
                return self._refused(command, "its answer was lost and it did not take effect")
            revisions.add(found.mod_revision)
        if len(revisions) != 1:
            return self._refused(command, "its answer was lost and its seats were given anew")
        return self._granted(command, revisions.pop())

    def _granted(self, command: Grant | Reclaim | Direct, revision: int) -> Granted:
        decision = command.decision
        log.info(
            "decision %d: %s %s on %s at fence %d: %s",
            decision.n, decision.order, decision.engine, ",".join(decision.devices), revision, decision.cause,
        )  # fmt: skip
        return Granted(command.id, revision)

    def _refused(self, command: Grant | Reclaim | Direct, reason: str) -> GrantRefused:
        log.warning(
            "decision %d (%s %s) failed: %s",
            command.decision.n,
            command.decision.order,
            command.decision.engine,
            reason,
        )
        return GrantRefused(command.id, reason)


def decision_key(decision: Decision) -> str:
    """The decision's slot in the ring."""
    return keys.decision(decision.n % DECISION_RING)


def _compares(command: Grant | Reclaim | Direct) -> Sequence[Compare]:
    leader = CreateRevision(command.election_key, command.election_revision)
    if isinstance(command, Direct):
        return [leader, ModRevision(keys.process_order(command.engine), command.revision)]
    compares: list[Compare] = [
        leader,
        ValueIs(keys.EPOCH, encode(Epoch(id=command.epoch))),
        *(ModRevision(keys.seat(at.device), at.revision) for at in command.seats),
    ]
    if isinstance(command, Grant):
        compares.append(ModRevision(keys.spec(command.holder.engine), command.spec_revision))
    return compares


def _written(command: Grant | Reclaim | Direct) -> dict[str, _Written]:
    """What tells, by key, whether it took effect."""
    if isinstance(command, Direct):
        return {keys.process_order(command.engine): _Written(command.order, command.revision)}
    return {keys.seat(at.device): _Written(_seat(command), at.revision) for at in command.seats}


def _seat(command: Grant | Reclaim) -> Seat:
    if isinstance(command, Grant):
        return Seat(
            holder=command.holder,
            lease=command.lease,
            order=command.order,
            bytes=command.bytes,
            limit_s=command.limit_s,
        )
    return Seat(holder=command.holder, lease=0, order=Order.RECLAIM, bytes=0, limit_s=command.limit_s)


def _token_op(command: Grant | Reclaim, key: str) -> Op:
    """A token on the holder's lease; a reclaim takes the holder's token away."""
    if isinstance(command, Reclaim):
        return Delete(key)
    token = Token(
        holder=command.holder,
        lease=command.lease,
        order=command.order,
        bytes=command.bytes,
        cause=command.decision.cause,
    )
    return Put(key, encode(token), lease=command.lease)


def _same(value: bytes, written: Value) -> bool:
    try:
        return decode(type(written), value) == written
    except SchemaError:
        return False
