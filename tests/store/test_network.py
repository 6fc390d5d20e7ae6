"""Between us and a real etcd: lost replies, refused and half-dead connections, several endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from coordinator.errors import Ambiguous, StoreUnavailable
from coordinator.store import connect, keys
from coordinator.store.base import CreateRevision, Listing, Put, Store
from coordinator.store.epoch import ensure_epoch
from coordinator.store.follow import follow
from coordinator.supervise.ports import free_port
from tests.helpers.etcd import RealEtcd
from tests.helpers.proxy import Proxy
from tests.helpers.store import appears, keys_of, put, put_once, take


@pytest.fixture
async def proxy(real: RealEtcd) -> AsyncIterator[Proxy]:
    async with Proxy(real.port) as proxy:
        yield proxy


@pytest.fixture
async def direct(real: RealEtcd) -> AsyncIterator[Store]:
    store = real.client()
    yield store
    await store.close()


def nowhere() -> str:
    """A URL that refuses connections."""
    return f"http://127.0.0.1:{free_port()}"


async def test_a_write_whose_reply_is_lost_is_ambiguous_and_sent_once(proxy: Proxy, direct: Store, prefix: str) -> None:
    store = connect([proxy.url], call_timeout=2.0, environ={})
    await put_once(store, f"{prefix}warm")
    proxy.swallow = b""
    with pytest.raises(Ambiguous, match="read back"):
        await store.txn([], [Put(f"{prefix}a", b"")])
    await appears(direct, f"{prefix}a")
    standing = await direct.get(f"{prefix}a")
    assert standing is not None
    assert standing.create_revision == standing.mod_revision
    await store.close()


async def test_a_write_that_never_left_is_unavailable_not_ambiguous(prefix: str) -> None:
    store = connect([nowhere()], call_timeout=0.3, environ={})
    with pytest.raises(StoreUnavailable):
        await store.txn([], [Put(f"{prefix}a", b"")])
    await store.close()


async def test_a_write_to_a_stopped_server_is_ambiguous(real: RealEtcd, prefix: str) -> None:
    store = real.client(call_timeout=0.5)
    await put_once(store, f"{prefix}warm")
    real.pause()
    try:
        with pytest.raises(Ambiguous):
            await store.txn([], [Put(f"{prefix}a", b"")])
        with pytest.raises(StoreUnavailable):
            await store.list(prefix)
        with pytest.raises(StoreUnavailable):
            await store.grant_lease(5)
    finally:
        real.resume()
    await store.close()


async def test_reads_and_leases_survive_lost_replies(proxy: Proxy, direct: Store, prefix: str) -> None:
    await put(direct, f"{prefix}a", b"1")
    store = connect([proxy.url, *([proxy.url.replace("127.0.0.1", "localhost")])], environ={})
    proxy.swallow = b""
    reading = asyncio.create_task(store.get(f"{prefix}a"))
    granting = asyncio.create_task(store.grant_lease(30))
    await asyncio.sleep(0.1)  # a few attempts whose replies are swallowed; each grant reached etcd
    proxy.swallow = None
    standing = await reading
    assert standing is not None
    assert standing.value == b"1"
    lease = await granting
    assert await direct.keep_alive(lease) == 30.0
    await direct.revoke_lease(lease)
    await store.close()


async def test_the_next_endpoint_takes_over(real: RealEtcd, prefix: str) -> None:
    store = connect([nowhere(), nowhere(), real.url], environ={})
    at = await put(store, f"{prefix}a")
    async with aclosing(store.watch(prefix, at)) as watch:
        assert keys_of(await take(watch, 1)) == [f"{prefix}a"]
    await store.close()


async def test_a_silent_endpoint_is_left_for_one_that_answers(proxy: Proxy, real: RealEtcd, prefix: str) -> None:
    proxy.mute = True
    store = connect([proxy.url, real.url], call_timeout=10.0, stall=0.3, environ={})
    start = (await store.list(prefix)).revision + 1
    await put(store, f"{prefix}a")
    store.channel.avoid(store.channel.endpoint)  # back to the silent one
    assert store.channel.endpoint.url == proxy.url
    async with aclosing(store.watch(prefix, start)) as watch:
        assert keys_of(await take(watch, 1)) == [f"{prefix}a"]
    await store.close()


async def test_a_half_dead_watch_is_noticed_by_its_silence(proxy: Proxy, direct: Store, prefix: str) -> None:
    store = connect([proxy.url], stall=0.5, environ={})
    start = await put(direct, f"{prefix}a")
    async with aclosing(store.watch(prefix, start)) as watch:
        await take(watch, 1)
        proxy.freeze()
        await put(direct, f"{prefix}b")
        await put(direct, f"{prefix}c")
        assert keys_of(await take(watch, 2)) == [f"{prefix}b", f"{prefix}c"]
    await store.close()


async def test_doubt_finds_what_a_half_dead_watch_hides(proxy: Proxy, direct: Store, prefix: str) -> None:
    store = connect([proxy.url], stall=600.0, environ={})
    await put(direct, f"{prefix}a")
    async with aclosing(follow(store, prefix, doubt=0.5)) as updates:
        await take(updates, 1)
        await put(direct, f"{prefix}b")
        await take(updates, 1)
        proxy.freeze()
        await put(direct, f"{prefix}c")
        (found,) = await take(updates, 1)
        assert isinstance(found, Listing)
        assert [kv.key for kv in found.kvs] == [f"{prefix}{name}" for name in "abc"]
    await store.close()


async def test_connections_that_are_cut_lose_and_repeat_nothing(proxy: Proxy, direct: Store, prefix: str) -> None:
    store = connect([proxy.url], environ={})
    names = [f"{prefix}{n:03d}" for n in range(100)]
    start = (await direct.list(prefix)).revision + 1

    async def write() -> None:
        for n, name in enumerate(names):
            await put(direct, name)
            if n % 25 == 0:
                await proxy.cut()

    async with aclosing(store.watch(prefix, start)) as watch:
        writing = asyncio.create_task(write())
        seen = await take(watch, len(names))
        await writing
    assert keys_of(seen) == names
    await store.close()


async def test_a_campaign_and_an_epoch_survive_lost_replies(proxy: Proxy, direct: Store) -> None:
    await direct.txn([], [])
    store = connect([proxy.url], environ={})
    proxy.swallow = b"/kv/txn"
    creating = asyncio.create_task(ensure_epoch(store, lambda: "mine"))
    await appears(direct, keys.EPOCH)
    proxy.swallow = None
    assert (await creating).id == "mine"
    standing = await direct.get(keys.EPOCH)
    assert standing is not None
    assert standing.create_revision == standing.mod_revision
    assert (await direct.txn([CreateRevision(keys.EPOCH, standing.create_revision)], [])).succeeded
    await store.close()
