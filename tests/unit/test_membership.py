"""A coordinator among coordinators, on the store in memory and in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager

import pytest

from coordinator.core.events import Event, LeadershipGained, LeadershipLost
from coordinator.core.model import Coordinator, Demand, Heartbeat, ModelId, Refusal
from coordinator.membership import SPACING_S, Member
from coordinator.sources import Reached
from coordinator.store import keys
from coordinator.store.base import Delete
from coordinator.store.codec import decode
from coordinator.store.follow import follow
from coordinator.store.memory import MemoryEtcd, MemoryStore
from tests.helpers.clock import run_virtual


class Standing:
    """One member and what it told: `events`, and `demand` that a test sets."""

    def __init__(self, etcd: MemoryEtcd, identifier: str) -> None:
        self.store = etcd.client(timeout=1.0)
        self.events: list[Event] = []
        self.demand: dict[str, Demand] = {}
        self.reached = Reached()
        identity = Coordinator(id=identifier, admin_url="http://127.0.0.1:1", gateway_url="http://127.0.0.1:2")
        self.notices: dict[ModelId, Refusal] = {}
        self.member = Member(
            self.store, identity, self.events.append, self.reached.until, lambda: self.demand, lambda: self.notices
        )

    async def watch(self) -> None:
        async with aclosing(follow(self.store, keys.ROOT)) as updates:
            async for update in updates:
                self.reached.move(update.revision)

    def ask(self, model: str, waiting: int) -> None:
        if waiting:
            self.demand[model] = Demand(waiting=waiting)
        else:
            del self.demand[model]
        self.member.demand_moved()

    def tell(self, model: str, reason: str) -> None:
        self.notices[ModelId(model)] = Refusal(reason=reason, retry_after_s=30.0)
        self.member.notices_moved()

    def take_back(self, model: str) -> None:
        del self.notices[ModelId(model)]
        self.member.notices_moved()


@asynccontextmanager
async def standing(etcd: MemoryEtcd, identifier: str) -> AsyncIterator[Standing]:
    it = Standing(etcd, identifier)
    tasks = [asyncio.create_task(it.watch()), asyncio.create_task(it.member.run())]
    try:
        yield it
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()


async def until(told: Callable[[], bool], seconds: float = 60.0) -> None:
    """In virtual time a wait costs nothing."""
    async with asyncio.timeout(seconds):
        while not told():  # noqa: ASYNC110 - what is waited for is no event
            await asyncio.sleep(0.05)


async def demand_of(store: MemoryStore, gateway: str) -> dict[str, int]:
    listing = await store.list(keys.ROOT + f"demand/{gateway}/")
    return {kv.key.rpartition("/")[2]: decode(Demand, kv.value).waiting for kv in listing.kvs}


async def notices(store: MemoryStore) -> dict[str, str]:
    listing = await store.list(keys.ROOT + "refusals/")
    return {kv.key.rpartition("/")[2]: decode(Refusal, kv.value).reason for kv in listing.kvs}


Story = Callable[[], Coroutine[object, object, None]]


def story(test: Story) -> Callable[[], None]:
    """A test in virtual time."""

    def run() -> None:
        run_virtual(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@story
async def test_one_alone_leads_with_an_epoch_a_heartbeat_and_its_key() -> None:
    etcd = MemoryEtcd()
    async with standing(etcd, "c1") as c1:
        await until(lambda: c1.member.leading)
        gained = c1.events[0]
        assert isinstance(gained, LeadershipGained)
        proof = await c1.store.get(gained.key)
        assert proof is not None
        assert proof.create_revision == gained.create_revision
        assert await c1.store.get(keys.EPOCH) is not None
        own = await c1.store.get(keys.coordinator("c1"))
        assert own is not None
        assert decode(Coordinator, own.value).leading
        await asyncio.sleep(10.5)
        beat = await c1.store.get(keys.HEARTBEAT)
        assert beat is not None
        assert decode(Heartbeat, beat.value).n in (10, 11)


@story
async def test_its_key_says_how_often_it_has_read_its_file_leading_or_not() -> None:
    async with standing(MemoryEtcd(), "c1") as c1:

        async def said() -> Coordinator:
            found = await c1.store.get(keys.coordinator("c1"))
            assert found is not None
            return decode(Coordinator, found.value)

        c1.member.read_again(1)
        await until(lambda: c1.member.leading)
        await asyncio.sleep(1)
        assert ((await said()).reads, (await said()).leading) == (1, True)
        c1.member.read_again(2)
        await asyncio.sleep(1)
        assert ((await said()).reads, (await said()).leading) == (2, True)


@story
async def test_leadership_is_told_only_after_everything_before_it_is_known() -> None:
    etcd = MemoryEtcd()
    it = Standing(etcd, "c1")
    running = asyncio.create_task(it.member.run())
    await asyncio.sleep(20)
    assert it.events == []
    it.reached.move(1 << 40)
    await until(lambda: it.member.leading)
    running.cancel()
    await asyncio.wait((running,))


@story
async def test_of_two_one_leads_and_the_other_follows_when_it_resigns() -> None:
    etcd = MemoryEtcd()
    async with standing(etcd, "c2") as c2:
        await until(lambda: c2.member.leading)
        async with standing(etcd, "c1") as c1:
            await asyncio.sleep(10)
            assert [c1.member.leading, c2.member.leading] == [False, True]
        await asyncio.sleep(1)
        assert c2.member.leading
    assert isinstance(c2.events[-1], LeadershipLost)
    assert [kv.key for kv in (await etcd.client().list(keys.ROOT)).kvs] == [keys.EPOCH]


@story
async def test_a_leader_that_is_cut_off_stops_leading_and_another_goes_on() -> None:
    etcd = MemoryEtcd()
    async with standing(etcd, "c1") as c1, standing(etcd, "c2") as c2:
        await until(lambda: c1.member.leading or c2.member.leading)
        first, second = (c1, c2) if c1.member.leading else (c2, c1)
        first.store.partition()
        await until(lambda: not first.member.leading)
        assert not first.member.healthy
        await until(lambda: second.member.leading)
        first.store.heal()
        await until(lambda: first.member.healthy)
        await asyncio.sleep(10)
        assert [first.member.leading, second.member.leading] == [False, True]
        assert [type(event) for event in first.events] == [LeadershipGained, LeadershipLost]


@story
async def test_a_leader_whose_key_is_deleted_stands_again_with_a_new_proof() -> None:
    etcd = MemoryEtcd()
    async with standing(etcd, "c1") as c1:
        await until(lambda: c1.member.leading)
        gained = c1.events[0]
        assert isinstance(gained, LeadershipGained)
        await etcd.client().txn([], [Delete(gained.key)])
        await until(lambda: len(c1.events) == 3)
        again = c1.events[2]
        assert isinstance(again, LeadershipGained)
        assert again.create_revision > gained.create_revision


@story
async def test_while_etcd_is_away_nobody_leads_and_afterwards_somebody_does() -> None:
    etcd = MemoryEtcd()
    async with standing(etcd, "c1") as c1:
        await until(lambda: c1.member.leading)
        etcd.stop()
        await until(lambda: not c1.member.healthy)
        assert not c1.member.leading
        await asyncio.sleep(100)
        etcd.start()
        await until(lambda: c1.member.leading)


@story
async def test_etcd_that_lost_its_data_gets_a_new_epoch() -> None:
    etcd = MemoryEtcd()
    async with standing(etcd, "c1") as c1:
        await until(lambda: c1.member.leading)
        before = await c1.store.get(keys.EPOCH)
        etcd.lose_data()
        await until(lambda: len(c1.events) == 3)
        after = await c1.store.get(keys.EPOCH)
        assert before is not None
        assert after is not None
        assert before.value != after.value


@story
async def test_demand_stands_in_etcd_while_another_leads_and_goes_with_the_last_request() -> None:
    etcd = MemoryEtcd()
    async with standing(etcd, "c1") as c1:
        await until(lambda: c1.member.leading)
        c1.ask("a", 3)
        async with standing(etcd, "c2") as c2:
            await until(lambda: c2.member.healthy)
            c2.ask("a", 1)
            await asyncio.sleep(0.1)
            assert await demand_of(c1.store, "c2") == {"a": 1}  # the first at once
            c2.ask("a", 5)
            c2.ask("b", 2)
            await asyncio.sleep(1)
            assert await demand_of(c1.store, "c2") == {"a": 5, "b": 2}
            c2.ask("a", 0)
            await asyncio.sleep(1)
            assert await demand_of(c1.store, "c2") == {"b": 2}
            assert await demand_of(c1.store, "c1") == {}  # who leads hears it without etcd
        assert await demand_of(c1.store, "c2") == {}


@story
async def test_demand_is_put_again_on_a_new_lease_and_taken_away_by_whoever_comes_to_lead() -> None:
    etcd = MemoryEtcd()
    async with standing(etcd, "c1") as c1, standing(etcd, "c2") as c2:
        await until(lambda: c1.member.leading or c2.member.leading)
        leader, other = (c1, c2) if c1.member.leading else (c2, c1)
        name = "c2" if leader is c1 else "c1"
        other.ask("a", 4)
        await asyncio.sleep(1)
        other.store.partition()
        await until(lambda: not other.member.healthy)
        other.store.heal()
        await until(lambda: other.member.healthy)
        await asyncio.sleep(2)
        assert await demand_of(leader.store, name) == {"a": 4}
        leader.store.partition()
        await until(lambda: other.member.leading)
        await asyncio.sleep(1)
        assert await demand_of(other.store, name) == {}


@story
async def test_only_a_leader_tells_the_others_and_what_it_told_goes_with_it() -> None:
    etcd = MemoryEtcd()
    async with standing(etcd, "c1") as c1:
        await until(lambda: c1.member.leading)
        async with standing(etcd, "c2") as c2:
            await until(lambda: c2.member.healthy)
            c2.tell("a", "no leader's word")
            c1.tell("a", "it is drained")
            await asyncio.sleep(0.1)
            assert await notices(c2.store) == {"a": "it is drained"}
            c1.tell("a", "it is too large")
            c1.tell("b", "it failed")
            await asyncio.sleep(1)
            assert await notices(c2.store) == {"a": "it is too large", "b": "it failed"}
            c1.take_back("a")
            await asyncio.sleep(1)
            assert await notices(c2.store) == {"b": "it failed"}
            c2.take_back("a")
            c1.store.partition()
            await until(lambda: c2.member.leading)
            assert await notices(c2.store) == {}


@story
async def test_demand_is_published_at_most_five_times_a_second() -> None:
    etcd = MemoryEtcd()
    async with standing(etcd, "c1") as c1, standing(etcd, "c2") as c2:
        await until(lambda: c1.member.leading or c2.member.leading)
        other = c2 if c1.member.leading else c1
        before = etcd.mvcc.revision
        for n in range(1, 201):
            other.ask("a", n)
            await asyncio.sleep(0.01)
        assert etcd.mvcc.revision - before <= 2 * 5 + 1 + 3  # two seconds, and heartbeats


@story
async def test_that_nobody_waits_any_more_is_published_at_once() -> None:
    etcd = MemoryEtcd()
    async with standing(etcd, "c1") as c1, standing(etcd, "c2") as c2:
        await until(lambda: c1.member.leading or c2.member.leading)
        other, name = (c2, "c2") if c1.member.leading else (c1, "c1")
        other.ask("a", 1)
        other.ask("b", 1)
        await asyncio.sleep(0.01)
        other.ask("a", 0)
        other.ask("b", 2)
        await asyncio.sleep(0.01)
        assert await demand_of(other.store, name) == {"b": 1}
        other.ask("a", 1)  # somebody new: with the next ones
        await asyncio.sleep(0.01)
        assert await demand_of(other.store, name) == {"b": 1}
        await asyncio.sleep(SPACING_S)
        assert await demand_of(other.store, name) == {"a": 1, "b": 2}


@pytest.mark.parametrize("seconds", [0.3, 2.0])
def test_a_member_that_is_ended_while_etcd_is_away_ends(seconds: float) -> None:
    async def run() -> None:
        etcd = MemoryEtcd()
        async with asyncio.timeout(60), standing(etcd, "c1") as c1:
            await until(lambda: c1.member.leading)
            etcd.stop()
            await asyncio.sleep(seconds)

    run_virtual(run())
