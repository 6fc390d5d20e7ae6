"""The knobs of the store in memory: each does to a client what the fault it stands for does."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

import pytest

from coordinator.errors import Ambiguous, Compacted, LeaseLost, StoreUnavailable
from coordinator.store.base import Changes, Listing, Put
from coordinator.store.follow import follow
from coordinator.store.memory import Fault, MemoryEtcd
from tests.helpers.clock import run_virtual
from tests.helpers.store import keys_of, put, take


def test_a_delayed_call_takes_its_time() -> None:
    async def main() -> None:
        store = MemoryEtcd().client(faults=lambda verb: Fault(delay=1.0, reply_delay=2.0))
        await put(store, "/a")
        assert asyncio.get_running_loop().time() == 3.0

    run_virtual(main())


def test_a_lost_request_does_nothing_and_a_lost_reply_hides_what_was_done() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        deaf = server.client(faults=lambda verb: Fault(lose_request=True), timeout=1.0)
        with pytest.raises(StoreUnavailable):
            await put(deaf, "/a")
        assert server.mvcc.get("/a") is None
        mute = server.client(faults=lambda verb: Fault(lose_reply=True), timeout=1.0)
        with pytest.raises(Ambiguous):
            await put(mute, "/a")
        assert server.mvcc.get("/a") is not None
        with pytest.raises(StoreUnavailable):
            await mute.get("/a")

    run_virtual(main())


def test_a_partition_cuts_one_client_off() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        a, b = server.client(timeout=1.0), server.client()
        start = await put(b, "/0")
        async with aclosing(a.watch("/", start)) as watch:
            await take(watch, 1)
            a.partition()
            with pytest.raises(StoreUnavailable):
                await a.get("/0")
            await put(b, "/1")
            waiting = asyncio.create_task(take(watch, 1))
            await asyncio.sleep(30)
            assert not waiting.done()
            a.heal()
            assert keys_of(await waiting) == ["/1"]

    run_virtual(main())


def test_a_lagging_watch_is_late_and_loses_nothing() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        store = server.client(faults=lambda verb: Fault(delay=10.0 if verb == "watch" else 0.0))
        for name in "abc":
            await put(store, f"/{name}")
        async with aclosing(store.watch("/", 2)) as watch:
            assert keys_of(await take(watch, 3)) == ["/a", "/b", "/c"]
        assert asyncio.get_running_loop().time() == 30.0

    run_virtual(main())


def test_doubt_sees_through_a_watch_that_hangs() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        store = server.client(faults=lambda verb: Fault(delay=3600.0 if verb == "watch" else 0.0))
        async with aclosing(follow(store, "/", doubt=3.0)) as updates:
            await take(updates, 1)
            await put(store, "/a")
            (found,) = await take(updates, 1)
            assert isinstance(found, Listing)
            assert asyncio.get_running_loop().time() == 3.0

    run_virtual(main())


def test_a_broken_watch_resumes_or_says_that_history_is_gone() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        store = server.client()
        await put(store, "/a")
        async with aclosing(store.watch("/", 2)) as watch:
            await take(watch, 1)
            await put(store, "/b")
            server.break_watches()
            await put(store, "/c")
            assert keys_of(await take(watch, 2)) == ["/b", "/c"]
            server.break_watches()
            await put(store, "/d")
            server.compact()
            with pytest.raises(Compacted):
                await take(watch, 1)

    run_virtual(main())


def test_leases_expire_on_the_loop_s_clock() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        store = server.client()
        short, long = await store.grant_lease(3), await store.grant_lease(10)
        await put(store, "/short", lease=short)
        await put(store, "/long", lease=long)
        await asyncio.sleep(2)
        await store.keep_alive(short)
        await asyncio.sleep(2)
        assert server.mvcc.get("/short")
        async with aclosing(store.watch("/", 4)) as watch:
            assert keys_of(await take(watch, 1)) == ["/short"]
            assert asyncio.get_running_loop().time() == 5.0
            assert keys_of(await take(watch, 1)) == ["/long"]
            assert asyncio.get_running_loop().time() == 10.0

    run_virtual(main())


async def test_leases_expire_by_a_clock_that_is_handed_in() -> None:
    now = [0.0]
    server = MemoryEtcd(clock=lambda: now[0], min_ttl=2)
    store = server.client()
    lease = await store.grant_lease(1)
    assert await store.keep_alive(lease) == 2.0
    now[0] = 1.9
    server.expire()
    assert await store.keep_alive(lease) == 2.0
    now[0] = 3.9
    with pytest.raises(LeaseLost):
        await store.keep_alive(lease)  # any call notices, as etcd does by itself


def test_no_lease_expires_while_etcd_is_down_and_then_all_start_anew() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        store = server.client()
        lease = await store.grant_lease(5)
        await asyncio.sleep(4)
        server.stop()
        await asyncio.sleep(100)
        server.start()
        await asyncio.sleep(4)
        assert await store.keep_alive(lease) == 5.0

    run_virtual(main())


def test_lost_data_begins_again_at_revision_one_and_a_backup_goes_back() -> None:
    async def main() -> None:
        server = MemoryEtcd()
        store = server.client()
        await put(store, "/a")
        backup = server.checkpoint()
        at = await put(store, "/b")
        server.restore(backup)
        assert [kv.key for kv in (await store.list("/")).kvs] == ["/a"]
        assert (await store.list("/")).revision == at - 1
        async with aclosing(follow(store, "/", doubt=3.0)) as updates:
            await take(updates, 1)
            server.lose_data()
            (found,) = await take(updates, 1)
            assert found == Listing((), 1)
            await put(store, "/c")
            (changes,) = await take(updates, 1)
            assert isinstance(changes, Changes)
            assert changes.revision == 2

    run_virtual(main())


def test_a_store_of_another_life_that_has_come_further_is_listed_again() -> None:
    """A watch resumes in it as if nothing had happened; a key that was born anew without having died tells."""

    async def main() -> None:
        server = MemoryEtcd()
        store = server.client()
        await put(store, "/heartbeat")
        async with aclosing(follow(store, "/", doubt=60.0)) as updates:
            await take(updates, 1)
            server.lose_data()
            server.stop()
            for key in ("/epoch", "/heartbeat", "/a", "/b"):
                server.mvcc.txn([], [Put(key, b"")])
            server.start()
            await put(store, "/heartbeat")
            (found,) = await take(updates, 1)
            while not isinstance(found, Listing):
                (found,) = await take(updates, 1)
            assert [kv.key for kv in found.kvs] == ["/a", "/b", "/epoch", "/heartbeat"]

    run_virtual(main())


def test_the_same_seed_makes_the_same_run() -> None:
    async def main(seed: int) -> list[object]:
        rng = random.Random(seed)
        server = MemoryEtcd(rng=rng)
        faults = [Fault(delay=rng.random(), lose_reply=rng.random() < 0.2) for _ in range(200)]
        stores = [server.client(faults=lambda verb: faults.pop(), timeout=1.0) for _ in range(3)]

        async def work(n: int) -> None:
            for _ in range(10):
                try:
                    lease = await stores[n].grant_lease(rng.randrange(1, 5))
                    await stores[n].txn([], [Put(f"/{n}/{rng.random()}", b"", lease)])
                except (Ambiguous, StoreUnavailable, LeaseLost):
                    continue

        await asyncio.gather(*map(work, range(3)))
        return [server.mvcc.list("/"), asyncio.get_running_loop().time()]

    assert run_virtual(main(1)) == run_virtual(main(1))
    assert run_virtual(main(1)) != run_virtual(main(2))
