"""Decisions as transactions: what they compare and put, and what becomes of an answer that is lost."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from coordinator.core.commands import Grant, Reclaim, SeatAt
from coordinator.core.events import Granted, GrantRefused
from coordinator.core.model import Decision, DeviceId, Epoch, Holder, Order, Seat, Token
from coordinator.effects import Effects
from coordinator.store import keys
from coordinator.store.base import Delete, Put
from coordinator.store.codec import decode, encode
from coordinator.store.memory import Fault, MemoryEtcd, MemoryStore

A = Holder("a", "n1")
D0, D1 = DeviceId("local/0"), DeviceId("local/1")
LEADER = keys.ELECTION + "1"
EPOCH = "e1"


class Setting:
    """A store with an epoch, a leader and an engine's spec on its lease; `grant` and `reclaim` fit it as it stands."""

    def __init__(self) -> None:
        self.etcd = MemoryEtcd()
        self.store = self.etcd.client(timeout=0.01)
        self.effects = Effects(self.store, unix_time=lambda: 1234.5, read_back_s=5.0)
        self.lease = 0
        self.leader = 0
        self.spec = 0

    async def prepare(self) -> Setting:
        self.lease = await self.store.grant_lease(60)
        await self.store.txn([], [Put(keys.EPOCH, encode(Epoch(id=EPOCH)))])
        self.leader = (await self.store.txn([], [Put(LEADER, b"me")])).revision
        self.spec = (await self.store.txn([], [Put(keys.spec("a"), b"{}", self.lease)])).revision
        return self

    def decision(self, order: Order, n: int = 7) -> Decision:
        return Decision(n=n, at=0, order=order, engine="a", devices=(D0, D1), cause="asked")

    def grant(self, *, id_: int = 1, seats: tuple[int, int] = (0, 0), n: int = 7, size: int = 10) -> Grant:
        return Grant(
            id=id_,
            order=Order.RESTORE,
            holder=A,
            lease=self.lease,
            spec_revision=self.spec,
            epoch=EPOCH,
            election_key=LEADER,
            election_revision=self.leader,
            seats=(SeatAt(D0, seats[0]), SeatAt(D1, seats[1])),
            bytes=size,
            limit_s=60,
            decision=self.decision(Order.RESTORE, n),
        )

    def reclaim(self, revision: int) -> Reclaim:
        return Reclaim(
            id=2,
            holder=A,
            epoch=EPOCH,
            election_key=LEADER,
            election_revision=self.leader,
            seats=(SeatAt(D0, revision), SeatAt(D1, revision)),
            limit_s=30,
            decision=self.decision(Order.RECLAIM),
        )

    async def seat(self, device: DeviceId) -> tuple[Seat, int]:
        found = await self.store.get(keys.seat(device))
        assert found is not None
        return decode(Seat, found.value), found.mod_revision

    def txns(self) -> Callable[[], int]:
        """Counts transactions that reach the store from now on."""
        count = 0
        before = self.store.faults

        def counting(verb: str) -> Fault:
            nonlocal count
            count += verb == "txn"
            return before(verb)

        self.store.faults = counting
        return lambda: count


@pytest.fixture
async def setting() -> Setting:
    return await Setting().prepare()


def once(fault: Fault, verb: str = "txn") -> Callable[[str], Fault]:
    left = [fault]
    return lambda called: left.pop() if called == verb and left else Fault()


async def test_a_grant_puts_tokens_on_the_holders_lease_seats_without_and_its_record_under_one_revision(
    setting: Setting,
) -> None:
    outcome = await setting.effects.perform(setting.grant())
    assert isinstance(outcome, Granted)
    for device in (D0, D1):
        seat, revision = await setting.seat(device)
        assert revision == outcome.revision
        assert (seat.holder, seat.order, seat.bytes, seat.limit_s) == (A, Order.RESTORE, 10, 60)
        token = await setting.store.get(keys.token(device))
        assert token is not None
        assert (token.mod_revision, token.lease) == (outcome.revision, setting.lease)
        assert decode(Token, token.value).holder == A
    record = await setting.store.get(keys.decision(7))
    assert record is not None
    assert (record.mod_revision, decode(Decision, record.value).at) == (outcome.revision, 1234.5)


async def test_a_grant_is_three_writes_of_one_transaction(setting: Setting) -> None:
    count = setting.txns()
    await setting.effects.perform(setting.grant())
    assert count() == 1


async def test_records_are_a_ring(setting: Setting) -> None:
    await setting.effects.perform(setting.grant(n=1024 + 3))
    assert await setting.store.get(keys.decision(3)) is not None


async def test_a_reclaim_deletes_the_tokens_and_puts_seats_for_the_daemon(setting: Setting) -> None:
    granted = await setting.effects.perform(setting.grant())
    assert isinstance(granted, Granted)
    outcome = await setting.effects.perform(setting.reclaim(granted.revision))
    assert isinstance(outcome, Granted)
    for device in (D0, D1):
        seat, revision = await setting.seat(device)
        assert (seat.order, seat.holder, revision) == (Order.RECLAIM, A, outcome.revision)
        assert await setting.store.get(keys.token(device)) is None


async def test_a_reclaim_does_not_need_the_spec(setting: Setting) -> None:
    granted = await setting.effects.perform(setting.grant())
    assert isinstance(granted, Granted)
    setting.etcd.expire_lease(setting.lease)
    assert isinstance(await setting.effects.perform(setting.reclaim(granted.revision)), Granted)


@pytest.mark.parametrize(
    "stale",
    [
        {"election_revision": 999},
        {"election_key": keys.ELECTION + "2"},
        {"epoch": "another"},
        {"spec_revision": 999},
        {"seats": (SeatAt(D0, 0), SeatAt(D1, 5))},
    ],
    ids=lambda stale: next(iter(stale)),
)
async def test_a_grant_that_rests_on_old_knowledge_changes_nothing(setting: Setting, stale: dict[str, object]) -> None:
    before = (await setting.store.list(keys.ROOT)).kvs
    outcome = await setting.effects.perform(msgspec.structs.replace(setting.grant(), **stale))
    assert isinstance(outcome, GrantRefused)
    assert (await setting.store.list(keys.ROOT)).kvs == before


async def test_of_two_grants_on_the_same_seats_one_is_refused(setting: Setting) -> None:
    first = await setting.effects.perform(setting.grant(id_=1))
    second = await setting.effects.perform(setting.grant(id_=2, size=20))
    assert (type(first), type(second)) == (Granted, GrantRefused)
    assert (await setting.seat(D0))[0].bytes == 10


async def test_a_token_that_came_and_vanished_is_not_taken_for_no_token(setting: Setting) -> None:
    """The holder's lease ends in the middle of its operation: its token is gone, its seat is not."""
    stale = setting.grant(id_=2, size=99)
    assert isinstance(await setting.effects.perform(setting.grant()), Granted)
    setting.etcd.expire_lease(setting.lease)
    lease = await setting.store.grant_lease(60)
    spec = (await setting.store.txn([], [Put(keys.spec("a"), b"{}", lease)])).revision
    assert await setting.store.get(keys.token(D0)) is None
    outcome = await setting.effects.perform(msgspec.structs.replace(stale, lease=lease, spec_revision=spec))
    assert isinstance(outcome, GrantRefused)
    assert (await setting.seat(D0))[0].bytes == 10


async def test_a_grant_on_a_dead_lease_fails_whole(setting: Setting) -> None:
    grant = setting.grant()
    setting.etcd.expire_lease(setting.lease)
    await setting.store.txn([], [Put(keys.spec("a"), b"{}")])
    spec = await setting.store.get(keys.spec("a"))
    assert spec is not None
    outcome = await setting.effects.perform(msgspec.structs.replace(grant, spec_revision=spec.mod_revision))
    assert isinstance(outcome, GrantRefused)
    assert await setting.store.get(keys.seat(D0)) is None


async def test_a_lost_reply_is_read_back_and_never_sent_again(setting: Setting) -> None:
    setting.store.faults = once(Fault(lose_reply=True))
    count = setting.txns()
    outcome = await setting.effects.perform(setting.grant())
    assert isinstance(outcome, Granted)
    assert (await setting.seat(D0))[1] == outcome.revision
    assert count() == 1


async def test_a_lost_reply_of_a_transaction_that_failed_is_a_refusal(setting: Setting) -> None:
    await setting.effects.perform(setting.grant())
    setting.store.faults = once(Fault(lose_reply=True))
    outcome = await setting.effects.perform(setting.grant(id_=2, size=99))
    assert isinstance(outcome, GrantRefused)
    assert (await setting.seat(D0))[0].bytes == 10


async def test_a_lost_reply_is_not_mistaken_for_the_same_grant_before(setting: Setting) -> None:
    """The same content under the revision that was compared is the previous grant, not this one."""
    first = await setting.effects.perform(setting.grant())
    assert isinstance(first, Granted)
    setting.store.faults = once(Fault(lose_reply=True))
    stale = msgspec.structs.replace(setting.grant(id_=2, seats=(first.revision, first.revision)), spec_revision=999)
    assert isinstance(await setting.effects.perform(stale), GrantRefused)


async def test_reading_back_goes_on_while_etcd_does_not_answer(setting: Setting) -> None:
    faults = [Fault(lose_request=True), Fault(lose_request=True)]
    lost = once(Fault(lose_reply=True))
    setting.store.faults = lambda verb: faults.pop() if verb == "get" and faults else lost(verb)
    outcome = await setting.effects.perform(setting.grant())
    assert isinstance(outcome, Granted)
    assert faults == []


async def test_reading_back_is_bounded(setting: Setting) -> None:
    effects = Effects(setting.store, read_back_s=0.05)
    setting.store.faults = lambda verb: Fault(lose_reply=True) if verb == "txn" else Fault(lose_request=True)
    outcome = await effects.perform(setting.grant())
    assert isinstance(outcome, GrantRefused)
    assert "unknown" in outcome.reason


async def test_etcd_away_is_a_refusal(setting: Setting) -> None:
    setting.store.faults = once(Fault(lose_request=True))
    outcome = await setting.effects.perform(setting.grant())
    assert isinstance(outcome, GrantRefused)


async def test_two_leaders_at_once_cannot_both_grant(setting: Setting) -> None:
    """The old leader does not know yet; its key is gone, so its transaction fails though the seats are as it saw."""
    old = setting.grant(id_=1)
    other: MemoryStore = setting.etcd.client()
    key = keys.ELECTION + "2"
    await setting.store.txn([], [Put(LEADER + "x", b"")])
    setting.etcd.txn([], [Put(key, b"you")])
    standing = await other.get(key)
    assert standing is not None
    await other.txn([], [Delete(LEADER)])
    new = msgspec.structs.replace(
        setting.grant(id_=1, size=55), election_key=key, election_revision=standing.create_revision
    )
    outcomes = [await setting.effects.perform(old), await Effects(other).perform(new)]
    assert [type(outcome) for outcome in outcomes] == [GrantRefused, Granted]
    assert (await setting.seat(D0))[0].bytes == 55
