"""The one writer of an engine's keys, on a store in memory with faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import pytest

from coordinator.core.model import Bytes, Holder, Load, Phase, Residency, Spec, Value
from coordinator.store import keys
from coordinator.store.base import Compare, ModRevision, Op, Put, TxnResult
from coordinator.store.codec import decode, encode
from coordinator.store.follow import follow
from coordinator.store.memory import Fault, MemoryEtcd, MemoryStore
from engine_patch import publisher as publishers
from engine_patch.publisher import Publisher
from native.protocol import Answer
from tests.helpers.eventually import eventually

ME = Holder("e", "n1")


def spec(nonce: str = "n1") -> Spec:
    return Spec(
        holder=Holder("e", nonce), model="m", url="u", devices=("local/0",), pid=1, boot_id="b", footprint=Bytes()
    )


def residency(phase: Phase) -> Residency:
    return Residency(holder=ME, phase=phase)


@asynccontextmanager
async def running(store: MemoryStore) -> AsyncIterator[Publisher]:
    publisher = Publisher(store, ME)
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher
    finally:
        task.cancel()
        await asyncio.wait({task})


async def stands(store: MemoryStore, key: str, value: Value) -> None:
    """Until `value` stands at `key`."""
    async with asyncio.timeout(30), aclosing(follow(store, key)) as news:
        async for _ in news:
            kv = await store.get(key)
            if kv is not None and decode(type(value), kv.value) == value:
                return


async def test_a_burst_goes_in_one_transaction_onto_the_lease():
    store = MemoryEtcd().client()
    async with running(store) as publisher:
        publisher.put(keys.spec("e"), spec())
        publisher.put(keys.residency("e"), residency(Phase.STARTING))
        publisher.put(keys.load("e"), Load())
        lease = await store.grant_lease(5)
        publisher.move(lease)
        await asyncio.wait_for(publisher.registered.wait(), 30)
        kvs = (await store.list(keys.ROOT + "engines/")).kvs
        assert len(kvs) == 3
        assert {kv.lease for kv in kvs} == {lease}
        assert len({kv.mod_revision for kv in kvs}) == 1


async def test_a_newer_value_takes_the_place_of_one_that_waits():
    store = MemoryEtcd().client()
    async with running(store) as publisher:
        publisher.move(await store.grant_lease(5))
        publisher.put(keys.residency("e"), residency(Phase.DRAINING), within=3600)
        publisher.put(keys.residency("e"), residency(Phase.OFFLOADED))
        await stands(store, keys.residency("e"), residency(Phase.OFFLOADED))
        kv = await store.get(keys.residency("e"))
        assert kv is not None
        assert kv.create_revision == kv.mod_revision


async def test_everything_moves_to_the_next_lease():
    etcd = MemoryEtcd()
    store = etcd.client()
    async with running(store) as publisher:
        first = await store.grant_lease(5)
        publisher.move(first)
        publisher.put(keys.spec("e"), spec())
        publisher.put(keys.residency("e"), residency(Phase.RESIDENT))
        await stands(store, keys.residency("e"), residency(Phase.RESIDENT))
        etcd.expire_lease(first)
        publisher.put(keys.load("e"), Load(waiting=1))
        assert await store.get(keys.spec("e")) is None
        second = await store.grant_lease(5)
        publisher.move(second)
        await stands(store, keys.load("e"), Load(waiting=1))
        assert {kv.lease for kv in (await store.list(keys.ROOT + "engines/")).kvs} == {second}


async def test_a_write_whose_answer_was_lost_never_overtakes_a_later_one(monkeypatch: pytest.MonkeyPatch):
    """The first put is applied late or not at all: what stands in the end is the newest value."""
    monkeypatch.setattr(publishers, "PAUSE_S", 0.001)
    etcd = MemoryEtcd()
    faults = {"left": 3}

    def some(verb: str) -> Fault:
        if verb == "txn" and faults["left"]:
            faults["left"] -= 1
            return Fault(lose_reply=faults["left"] % 2 == 0, lose_request=faults["left"] % 2 == 1)
        return Fault()

    store = etcd.client(faults=some, timeout=0.01)
    async with running(store) as publisher:
        publisher.move(await store.grant_lease(5))
        for phase in (Phase.STARTING, Phase.RESIDENT, Phase.DRAINING, Phase.OFFLOADED):
            publisher.put(keys.residency("e"), residency(phase))
            await asyncio.sleep(0.005)
        await stands(store, keys.residency("e"), residency(Phase.OFFLOADED))
        assert faults["left"] == 0


async def test_another_process_with_this_id_is_not_overwritten(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(publishers, "PAUSE_S", 0.001)
    store = MemoryEtcd().client()
    theirs = await store.grant_lease(60)
    await store.txn([], [Put(keys.spec("e"), encode(spec("n0")), theirs)])
    async with running(store) as publisher:
        publisher.put(keys.spec("e"), spec())
        publisher.move(await store.grant_lease(60))
        await eventually(lambda: publisher.rival is not None)
        assert publisher.rival is not None
        assert publisher.rival.holder.nonce == "n0"
        assert not publisher.registered.is_set()
        await store.revoke_lease(theirs)
        await asyncio.wait_for(publisher.registered.wait(), 30)
        await stands(store, keys.spec("e"), spec())


@asynccontextmanager
async def entrusting(store: MemoryStore, told: list[Value], lease: int) -> AsyncIterator[tuple[Publisher, Answer]]:
    """A registered engine that sees its own keys, and has asked for `told[0]` to be put by somebody else."""

    async def follow_own() -> None:
        async with aclosing(follow(store, keys.ROOT)) as news:
            async for one in news:
                publisher.saw(one)

    async with running(store) as publisher:
        following = asyncio.create_task(follow_own())
        publisher.put(keys.residency("e"), residency(Phase.STARTING))
        publisher.move(lease)
        await asyncio.wait_for(publisher.registered.wait(), 30)
        answer = publisher.entrust(keys.residency("e"), told[0])
        assert answer is not None
        yield publisher, answer
        following.cancel()
        await asyncio.wait({following})


async def revision(store: MemoryStore) -> int:
    kv = await store.get(keys.residency("e"))
    assert kv is not None
    return kv.mod_revision


@pytest.mark.parametrize("early", [True, False])
async def test_what_the_daemon_puts_is_not_put_again(early: bool) -> None:
    store = MemoryEtcd().client()
    lease, told = await store.grant_lease(5), residency(Phase.OFFLOADED)
    async with entrusting(store, [told], lease) as (publisher, answer):
        if not early:
            publisher.put(keys.residency("e"), told)
        key = keys.residency("e")
        put = await store.txn([ModRevision(key, answer.above)], [Put(key, answer.residency, lease)])
        assert put.succeeded
        await eventually(lambda: publisher.shown(key) == put.revision)
        if early:
            publisher.put(key, told)
        publisher.put(keys.load("e"), Load(running=1), within=publishers.ENTRUSTED_S)
        await stands(store, keys.load("e"), Load(running=1))
        assert await revision(store) == put.revision
        publisher.put(key, residency(Phase.RESIDENT))
        await stands(store, key, residency(Phase.RESIDENT))
        assert publisher.entrust(key, told) is not None


async def test_what_the_daemon_does_not_put_comes_from_here_and_then_nothing_is_entrusted_for_a_while() -> None:
    store = MemoryEtcd().client()
    told = residency(Phase.OFFLOADED)
    async with entrusting(store, [told], await store.grant_lease(5)) as (publisher, _):
        publisher.put(keys.load("e"), Load(running=1))
        await stands(store, keys.load("e"), Load(running=1))
        kv = await store.get(keys.residency("e"))
        assert kv is not None
        assert decode(Residency, kv.value).phase is Phase.STARTING, "said before it was left"
        publisher.put(keys.residency("e"), told)
        await stands(store, keys.residency("e"), told)
        assert publisher.entrust(keys.residency("e"), told) is None


async def test_nothing_is_entrusted_without_a_lease_or_before_it_stands() -> None:
    store = MemoryEtcd().client()
    async with running(store) as publisher:
        assert publisher.entrust(keys.residency("e"), residency(Phase.OFFLOADED)) is None
        publisher.move(await store.grant_lease(5))
        assert publisher.entrust(keys.residency("e"), residency(Phase.OFFLOADED)) is None


async def test_nothing_is_entrusted_while_a_put_of_ours_is_under_way() -> None:
    """It would be compared with a revision that is gone; and a daemon that is not asked is not taken for one that may
    not write there."""
    slow = Fault()
    store = MemoryEtcd().client(faults=lambda verb: slow if verb == "txn" else Fault())
    async with running(store) as publisher:
        publisher.move(await store.grant_lease(5))
        publisher.put(keys.residency("e"), residency(Phase.RESIDENT))
        await stands(store, keys.residency("e"), residency(Phase.RESIDENT))
        slow = Fault(reply_delay=0.05)
        publisher.put(keys.residency("e"), residency(Phase.DRAINING))
        await stands(store, keys.residency("e"), residency(Phase.DRAINING))
        assert publisher.entrust(keys.residency("e"), residency(Phase.OFFLOADED)) is None
        await eventually(lambda: publisher.entrust(keys.residency("e"), residency(Phase.OFFLOADED)) is not None)
        assert publisher.entrust(keys.residency("e"), residency(Phase.OFFLOADED)) == Answer(
            encode(residency(Phase.OFFLOADED)), await revision(store)
        )


async def test_an_answer_on_another_lease_does_not_count() -> None:
    store = MemoryEtcd().client()
    lease, told = await store.grant_lease(5), residency(Phase.OFFLOADED)
    async with entrusting(store, [told], lease) as (publisher, answer):
        key, other = keys.residency("e"), await store.grant_lease(5)
        await store.txn([], [Put(key, answer.residency, other)])
        await eventually(lambda: publisher.shown(key) > answer.above)
        publisher.put(key, told)
        async with asyncio.timeout(30):
            while True:
                kv = await store.get(key)
                if kv is not None and kv.lease == lease:
                    break
                await asyncio.sleep(0.01)


async def test_what_waits_can_be_hastened_and_nothing_else_is_put() -> None:
    store = MemoryEtcd().client()
    async with running(store) as publisher:
        publisher.move(await store.grant_lease(5))
        publisher.put(keys.residency("e"), residency(Phase.RESIDENT))
        await stands(store, keys.residency("e"), residency(Phase.RESIDENT))
        before = (await store.list(keys.ROOT)).revision
        publisher.hasten(keys.load("e"))
        publisher.put(keys.load("e"), Load(), within=3600)
        publisher.hasten(keys.load("e"))
        await stands(store, keys.load("e"), Load())
        assert (await store.list(keys.ROOT)).revision == before + 1


async def test_the_end_of_an_earlier_lease_is_not_that_of_this_one() -> None:
    """Its answer comes when the keys are on their way to another already."""
    etcd = MemoryEtcd()
    held, free = asyncio.Event(), asyncio.Event()

    class Slow(MemoryStore):
        async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
            if not held.is_set():
                held.set()
                await free.wait()
            return await super().txn(compares, ops)

    store = Slow(etcd)
    async with running(store) as publisher:
        publisher.put(keys.residency("e"), residency(Phase.RESIDENT))
        gone = await store.grant_lease(5)
        publisher.move(gone)
        await held.wait()
        await store.revoke_lease(gone)
        lease = await store.grant_lease(5)
        publisher.move(lease)
        free.set()
        await stands(store, keys.residency("e"), residency(Phase.RESIDENT))
        kv = await store.get(keys.residency("e"))
        assert kv is not None
        assert kv.lease == lease
