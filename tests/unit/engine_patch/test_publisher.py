"""The one writer of an engine's keys, on a store in memory with faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from coordinator.core.model import Bytes, Holder, Load, Phase, Residency, Spec, Value
from coordinator.store import keys
from coordinator.store.base import Put
from coordinator.store.codec import decode, encode
from coordinator.store.follow import follow
from coordinator.store.memory import Fault, MemoryEtcd, MemoryStore
from engine_patch import publisher as publishers
from engine_patch.publisher import Publisher
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
