"""A coordinator among coordinators: its session, its key, its candidacy, and what a leader owes the others.

Everything here ends and begins anew with the session. A session that is lost ends leadership at once in this process;
what was ordered meanwhile carries its own proof (PROTOCOL rule 2), so a leader that does not know yet harms nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from coordinator.core.events import Event, LeadershipGained, LeadershipLost
from coordinator.core.model import Coordinator, Demand, Heartbeat, ModelId, Refusal
from coordinator.errors import Ambiguous, LeaseLost, SchemaError, StoreError, StoreUnavailable
from coordinator.store import keys
from coordinator.store.base import Compare, Delete, Op, Put, Store, TxnResult
from coordinator.store.codec import encode
from coordinator.store.election import Election, Leadership
from coordinator.store.epoch import ensure_epoch
from coordinator.store.session import TTL_S, Session, open_session

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
SPACING_S = 0.2
"""The first request that waits, or is refused, is published at once, then at most that often; that nobody waits any
more is always said at once, or a model that is slept meanwhile is woken for requests that have been answered."""
RETRY_S = 0.5
RESIGN_S = 2.0
OPS_PER_TXN = 100


class Member:
    """`post` puts an event into the inbox; `caught_up(revision)` returns when the inbox holds everything up to it;
    `demand` is what waits at this process's gateway and is asked of it, `notices` what a leader tells the gateways of
    others. `identity` says who we are and where."""

    def __init__(
        self,
        store: Store,
        identity: Coordinator,
        post: Callable[[Event], None],
        caught_up: Callable[[int], Awaitable[None]],
        demand: Callable[[], Mapping[str, Demand]],
        notices: Callable[[], Mapping[ModelId, Refusal]],
        *,
        ttl: int = TTL_S,
    ) -> None:
        self._store = store
        self._identity = identity
        self._post = post
        self._caught_up = caught_up
        self._demand = demand
        self._notices = notices
        self._ttl = ttl
        self._session: Session | None = None
        self._demand_moved = asyncio.Event()
        self._notices_moved = asyncio.Event()
        self._epoch_missing = asyncio.Event()
        self._identity_moved = asyncio.Event()
        self._announcing = asyncio.Lock()
        self._said_leading = False
        self.leading = False

    @property
    def healthy(self) -> bool:
        """Whether etcd answered within the last TTL."""
        return self._session is not None and self._session.alive

    def demand_moved(self) -> None:
        """What waits at the gateway has changed."""
        self._demand_moved.set()

    def notices_moved(self) -> None:
        """What the gateways of others are to be told has changed."""
        self._notices_moved.set()

    def epoch_missing(self) -> None:
        """The epoch's key is gone: whoever leads puts a new one."""
        self._epoch_missing.set()

    def read_again(self, reads: int) -> None:
        """The configuration was taken up again, so many times by now: whoever keeps engines looks at it too."""
        self._identity = msgspec.structs.replace(self._identity, reads=reads)
        self._identity_moved.set()

    async def run(self) -> None:
        """Session after session, until cancelled; then the leadership is resigned and the lease revoked."""
        away = False
        while True:
            try:
                async with open_session(self._store, self._ttl) as session:
                    self._session, away = session, False
                    await self._live(session)
            except* StoreError as errors:
                reason = "; ".join(map(str, errors.exceptions))
                log.log(logging.DEBUG if away else logging.WARNING, "membership is interrupted: %s", reason)
                away = True
            finally:
                self._session = None
            await asyncio.sleep(RETRY_S)

    async def _live(self, session: Session) -> None:
        """Until the session or the leadership is lost. Raises `StoreError`s, in a group."""
        async with asyncio.TaskGroup() as tasks:
            demand = self._keep_standing(session, self._demand_keys, self._demand_moved, [])
            tasks.create_task(demand, name="demand")
            await self._announce(session, leading=False)
            tasks.create_task(self._keep_announced(session), name="identity")
            await self._run_for_office(session)

    async def _run_for_office(self, session: Session) -> None:
        election = Election(self._store, session, self._identity.id.encode())
        mine = await election.campaign()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._lead(session, mine), name="lead")
                await election.until_lost(mine)
                raise LeaseLost("the leadership is over", remedy="stand again in a new session")
        finally:
            try:
                async with asyncio.timeout(RESIGN_S):
                    await election.resign(mine)
            except TimeoutError:
                log.info("resigning is left to the lease")

    async def _lead(self, session: Session, mine: Leadership) -> None:
        """First know everything that happened before (PROTOCOL rule 12), then lead."""
        try:
            await self._caught_up(await self._announce(session, leading=True))
            await self._ensure_epoch()
            self.leading = True
            self._post(LeadershipGained(mine.key, mine.create_revision))
            self._demand_moved.set()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._beat(session, mine), name="heartbeat")
                tasks.create_task(self._keep_epoch(), name="epoch")
                notices = self._keep_standing(session, self._notice_keys, self._notices_moved, [mine.holds()])
                tasks.create_task(notices, name="notices")
        finally:
            if self.leading:
                self.leading = False
                self._post(LeadershipLost())

    async def _announce(self, session: Session, *, leading: bool) -> int:
        """Our own key; returns its revision."""
        async with self._announcing:
            self._said_leading = leading
            return await self._say_identity(session)

    async def _keep_announced(self, session: Session) -> None:
        while True:
            await self._identity_moved.wait()
            async with self._announcing:
                self._identity_moved.clear()
                await self._say_identity(session)

    async def _say_identity(self, session: Session) -> int:
        value = encode(msgspec.structs.replace(self._identity, leading=self._said_leading))
        put = Put(keys.coordinator(self._identity.id), value, session.lease)
        return (await self._surely(session, [], [put])).revision

    async def _beat(self, session: Session, mine: Leadership) -> None:
        """Once a second the watch of everybody hears something. Raises `LeaseLost` when somebody else leads."""
        loop = asyncio.get_running_loop()
        n, due = 0, loop.time()
        while True:
            put = Put(keys.HEARTBEAT, encode(Heartbeat(n=n)), session.lease)
            try:
                if not (await self._store.txn([mine.holds()], [put])).succeeded:
                    raise LeaseLost(f"{mine.key} is gone", remedy="stand again in a new session")
            except (StoreUnavailable, Ambiguous) as error:
                log.debug("heartbeat %d: %s", n, error)
            n = (n + 1) % (1 << 31)
            due = max(due + HEARTBEAT_S, loop.time())
            await asyncio.sleep(due - loop.time())

    async def _keep_epoch(self) -> None:
        while True:
            await self._epoch_missing.wait()
            self._epoch_missing.clear()
            await self._ensure_epoch()

    async def _ensure_epoch(self) -> None:
        while True:
            try:
                epoch = await ensure_epoch(self._store)
            except StoreUnavailable as error:
                log.warning("cannot read the epoch yet: %s", error)
                await asyncio.sleep(RETRY_S)
            except SchemaError as error:
                log.error("%s does not decode, nothing will be granted: %s", keys.EPOCH, error)
                return
            else:
                log.info("epoch %s", epoch.id)
                return

    async def _keep_standing(
        self,
        session: Session,
        wanted: Callable[[], Mapping[str, bytes]],
        moved: asyncio.Event,
        proof: Sequence[Compare],
    ) -> None:
        """Exactly the keys that are `wanted`, under our lease. Raises `LeaseLost` where `proof` does not hold."""
        published: dict[str, bytes] = {}
        loop, due = asyncio.get_running_loop(), 0.0
        while True:
            moved.clear()
            now = dict(wanted())
            shown = now if loop.time() >= due else {key: published[key] for key in now if key in published}
            ops = [_op(key, shown.get(key), session.lease) for key in _moved(published, shown)]
            for start in range(0, len(ops), OPS_PER_TXN):
                if not (await self._surely(session, proof, ops[start : start + OPS_PER_TXN])).succeeded:
                    raise LeaseLost("the leadership is over", remedy="stand again in a new session")
            if any(isinstance(op, Put) for op in ops):
                due = loop.time() + SPACING_S
            published = shown
            try:
                async with asyncio.timeout_at(None if shown == now else due):
                    await moved.wait()
            except TimeoutError:
                due = 0.0

    def _demand_keys(self) -> Mapping[str, bytes]:
        """What waits here, for a leader elsewhere; a leader here hears it without etcd."""
        standing = {} if self.leading else self._demand()
        return {keys.demand(self._identity.id, model): encode(demand) for model, demand in standing.items()}

    def _notice_keys(self) -> Mapping[str, bytes]:
        return {keys.refusal(model): encode(refusal) for model, refusal in self._notices().items()}

    async def _surely(self, session: Session, compares: Sequence[Compare], then: Sequence[Op]) -> TxnResult:
        """An idempotent transaction, sent until it is answered. Raises `LeaseLost` with the session."""
        while True:
            try:
                return await self._store.txn(compares, then)
            except (StoreUnavailable, Ambiguous) as error:
                log.debug("sent again: %s", error)
            if not session.alive:
                raise LeaseLost("the session ended", remedy="open a new session")
            await asyncio.sleep(RETRY_S)


def _moved(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[str]:
    """Keys whose values differ."""
    return sorted(key for key in {*before, *after} if before.get(key) != after.get(key))


def _op(key: str, value: bytes | None, lease: int) -> Op:
    return Delete(key) if value is None else Put(key, value, lease)
