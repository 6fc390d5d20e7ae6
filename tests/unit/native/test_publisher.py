"""The daemon's keys in etcd, on the store in memory and in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from coordinator.errors import StoreError
from coordinator.store.base import Delete, Put
from coordinator.store.follow import follow
from coordinator.store.memory import Fault, MemoryEtcd, MemoryStore
from native.daemon.publisher import LAZY, Beside, Publisher
from tests.helpers.clock import run_virtual

KEY = "/vnpu/v1/nodes/n/devices/0"


@asynccontextmanager
async def publishing(store: MemoryStore, ttl: int = 5) -> AsyncIterator[Publisher]:
    """The publisher, which sees what the watch shows as the node lets it."""
    publisher = Publisher(store, ttl)

    async def watch() -> None:
        async with aclosing(follow(store, "/vnpu/v1/", doubt=None)) as news:
            async for item in news:
                publisher.saw(item)

    tasks = [asyncio.create_task(publisher.run()), asyncio.create_task(watch())]
    try:
        yield publisher
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def value(etcd: MemoryEtcd) -> bytes | None:
    kv = etcd.mvcc.get(KEY)
    return kv.value if kv is not None else None


def test_urgent_at_once_the_rest_later_and_together() -> None:
    async def body() -> None:
        etcd = MemoryEtcd()
        async with publishing(etcd.client()) as publisher:
            publisher.want({KEY: b"1"}, urgent=True)
            await asyncio.sleep(LAZY / 10)
            assert await value(etcd) == b"1"
            before = etcd.mvcc.revision
            for number in range(2, 10):
                publisher.want({KEY: b"%d" % number}, urgent=False)
                await asyncio.sleep(LAZY / 20)
            assert await value(etcd) == b"1"
            await asyncio.sleep(LAZY)
            assert await value(etcd) == b"9"
            assert etcd.mvcc.revision == before + 1
            publisher.want({KEY: b"10"}, urgent=False)
            publisher.want({KEY: b"11"}, urgent=True)
            await asyncio.sleep(LAZY / 10)
            assert await value(etcd) == b"11"

    run_virtual(body())


def test_the_keys_go_with_the_daemon() -> None:
    async def body() -> None:
        etcd = MemoryEtcd()
        async with publishing(etcd.client()) as publisher:
            publisher.want({KEY: b"1"}, urgent=True)
            await asyncio.sleep(1)
            assert await value(etcd) == b"1"
        assert await value(etcd) is None

    run_virtual(body())


def test_none_takes_the_key_away() -> None:
    async def body() -> None:
        etcd = MemoryEtcd()
        async with publishing(etcd.client()) as publisher:
            publisher.want({KEY: None}, urgent=True)
            await asyncio.sleep(1)
            publisher.want({KEY: b"1"}, urgent=True)
            await asyncio.sleep(1)
            publisher.want({KEY: None}, urgent=True)
            await asyncio.sleep(1)
            assert await value(etcd) is None
            publisher.want({KEY: b"2"}, urgent=True)
            await asyncio.sleep(1)
            assert await value(etcd) == b"2"

    run_virtual(body())


def test_after_a_lost_lease_everything_is_put_on_a_new_one() -> None:
    async def body() -> None:
        etcd = MemoryEtcd()
        async with publishing(etcd.client()) as publisher:
            publisher.want({KEY: b"1"}, urgent=True)
            await asyncio.sleep(1)
            kv = etcd.mvcc.get(KEY)
            assert kv is not None
            etcd.expire_lease(kv.lease)
            await asyncio.sleep(5)
            again = etcd.mvcc.get(KEY)
            assert again is not None
            assert again.value == b"1"
            assert again.lease != kv.lease

    run_virtual(body())


def test_etcd_away_for_long() -> None:
    async def body() -> None:
        etcd = MemoryEtcd()
        async with publishing(etcd.client()) as publisher:
            publisher.want({KEY: b"1"}, urgent=True)
            await asyncio.sleep(1)
            etcd.stop()
            publisher.want({KEY: b"2"}, urgent=True)
            await asyncio.sleep(600)
            etcd.start()
            await asyncio.sleep(30)
            assert await value(etcd) == b"2"

    run_virtual(body())


def test_lost_answers_are_read_back() -> None:
    """Every other transaction loses its answer, having been carried out or not."""

    async def body() -> None:
        etcd = MemoryEtcd()
        count = 0

        def faults(verb: str) -> Fault:
            nonlocal count
            if verb != "txn":
                return Fault()
            count += 1
            return Fault(lose_reply=count % 4 == 0, lose_request=count % 4 == 2)

        async with publishing(etcd.client(faults=faults, timeout=0.5), ttl=60) as publisher:
            for number in range(20):
                publisher.want({KEY: b"%d" % number}, urgent=True)
                await asyncio.sleep(5)
                assert await value(etcd) == b"%d" % number
                assert publisher.stands(KEY)

    run_virtual(body())


def test_a_write_that_was_on_its_way_cannot_land_after_a_later_one() -> None:
    """The request is held up in the network until its sender has given up and has put something newer."""

    async def body() -> None:
        etcd = MemoryEtcd()
        holding = [True]

        class Late(MemoryStore):
            async def txn(self, compares, then):  # type: ignore[no-untyped-def]
                if holding and any(op.value == b"old" for op in then if isinstance(op, Put)):
                    holding.clear()
                    late.append((compares, then))
                    from coordinator.errors import Ambiguous

                    raise Ambiguous("the answer was lost")
                return await super().txn(compares, then)

        late: list[tuple] = []  # type: ignore[type-arg]
        async with publishing(Late(etcd)) as publisher:
            publisher.want({KEY: b"first"}, urgent=True)
            await asyncio.sleep(1)
            publisher.want({KEY: b"old"}, urgent=True)
            await asyncio.sleep(1)
            publisher.want({KEY: b"new"}, urgent=True)
            await asyncio.sleep(1)
            etcd.txn(*late[0])
            assert await value(etcd) == b"new"

    run_virtual(body())


def test_what_somebody_else_wrote_or_deleted_is_put_again() -> None:
    async def body() -> None:
        etcd = MemoryEtcd()
        async with publishing(etcd.client()) as publisher:
            publisher.want({KEY: b"1"}, urgent=True)
            await asyncio.sleep(1)
            for harm in (Put(KEY, b"a stranger's"), Delete(KEY), Delete("/vnpu/v1/", prefix=True)):
                etcd.txn([], [harm])
                await asyncio.sleep(1)
                assert await value(etcd) == b"1"
            before = etcd.mvcc.revision
            await asyncio.sleep(60)
            assert etcd.mvcc.revision == before

    run_virtual(body())


ENGINES = "/vnpu/v1/engines/a/residency"


def test_an_answer_goes_along_in_the_same_transaction() -> None:
    async def body() -> None:
        etcd = MemoryEtcd()
        store = etcd.client()
        async with publishing(etcd.client()) as publisher:
            lease = await store.grant_lease(60)
            first = await store.txn([], [Put(ENGINES, b"old", lease)])
            publisher.want({KEY: b"1"}, urgent=True, beside=(Beside(Put(ENGINES, b"new", lease), first.revision),))
            await asyncio.sleep(LAZY / 10)
            kv, own = etcd.mvcc.get(ENGINES), etcd.mvcc.get(KEY)
            assert kv is not None
            assert own is not None
            assert (kv.value, kv.lease, kv.mod_revision) == (b"new", lease, own.mod_revision)
            before = etcd.mvcc.revision
            publisher.want({KEY: b"1"}, urgent=True)
            await asyncio.sleep(1)
            assert etcd.mvcc.revision == before

    run_virtual(body())


@pytest.mark.parametrize("why", ["changed", "dead", "forbidden"])
def test_an_answer_that_cannot_be_put_is_dropped_and_never_in_the_way(why: str) -> None:
    async def body() -> None:
        etcd = MemoryEtcd()
        store = etcd.client()
        refusing: list[str] = []

        def faults(verb: str) -> Fault:
            if verb in refusing:
                refusing.remove(verb)
                raise StoreError("permission denied")
            return Fault()

        async with publishing(etcd.client(faults=faults)) as publisher:
            await asyncio.sleep(0.1)
            lease = await store.grant_lease(60)
            first = await store.txn([], [Put(ENGINES, b"old", lease)])
            above = first.revision
            if why == "changed":
                above -= 1
            elif why == "dead":
                await store.revoke_lease(lease)
            else:
                refusing.append("txn")
            publisher.want({KEY: b"1"}, urgent=True, beside=(Beside(Put(ENGINES, b"new", lease), above),))
            await asyncio.sleep(LAZY / 10)
            assert await value(etcd) == b"1"
            kv = etcd.mvcc.get(ENGINES)
            assert (kv.value if kv is not None else None) == (None if why == "dead" else b"old")
            publisher.want({KEY: b"2"}, urgent=True)
            await asyncio.sleep(LAZY / 10)
            assert await value(etcd) == b"2"

    run_virtual(body())
