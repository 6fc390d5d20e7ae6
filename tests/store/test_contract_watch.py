"""Contract: a watch delivers every change exactly once, in order, a revision whole, whatever happens to etcd."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from coordinator.errors import Compacted, Rewound, StoreError, StoreUnavailable
from coordinator.store.base import Change, Delete, Put, Store
from tests.helpers.store import PATIENCE_S, changes_until, keys_of, put, put_once, take
from tests.store.conftest import Server


async def test_history_and_what_happens_now_come_as_one_stream(store: Store, prefix: str) -> None:
    first = await put(store, f"{prefix}a", b"1")
    second = await put(store, f"{prefix}b")
    async with aclosing(store.watch(prefix, first)) as watch:
        past = await take(watch, 2)
        third = (await store.txn([], [Delete(f"{prefix}a")])).revision
        (now,) = await take(watch, 1)
    assert [changes.revision for changes in (*past, now)] == [first, second, third]
    put_change = past[0].changes[0]
    assert put_change.kv is not None
    assert (put_change.key, put_change.kv.value, put_change.revision) == (f"{prefix}a", b"1", first)
    assert now.changes == (Change(f"{prefix}a", None, third),)


async def test_a_watch_begins_where_it_is_told(store: Store, prefix: str) -> None:
    await put(store, f"{prefix}before")
    at = await put(store, f"{prefix}at")
    last = await put(store, f"{prefix}after")
    assert keys_of(await changes_until(store, prefix, at, last)) == [f"{prefix}at", f"{prefix}after"]


async def test_a_watch_sees_its_prefix_only(store: Store, prefix: str) -> None:
    ops = [Put(f"{prefix}in", b""), Put(f"{prefix[:-1]}0out", b""), Put(f"{prefix[:-1]}", b"")]
    at = (await store.txn([], ops)).revision
    (seen,) = await changes_until(store, prefix, at, at)
    assert [change.key for change in seen.changes] == [f"{prefix}in"]


async def test_revision_zero_is_nobodys_start(store: Store, prefix: str) -> None:
    with pytest.raises(ValueError, match="revision 1"):
        async with aclosing(store.watch(prefix, 0)) as watch:
            await anext(watch)


async def test_a_burst_arrives_whole_and_in_order(store: Store, prefix: str) -> None:
    start = (await store.list(prefix)).revision + 1
    names = [f"{prefix}{n:03d}" for n in range(300)]
    async with aclosing(store.watch(prefix, start)) as watch:
        first = asyncio.create_task(take(watch, 1))
        await put(store, names[0])
        seen = await first
        for begin in range(1, 300, 50):  # many writes at once, several revisions to a frame
            await asyncio.gather(*(put(store, name) for name in names[begin : begin + 50]))
        seen += await take(watch, 299)
    assert sorted(keys_of(seen)) == names
    revisions = [changes.revision for changes in seen]
    assert revisions == sorted(set(revisions))


async def test_a_revision_larger_than_half_a_mebibyte_is_one_batch(store: Store, prefix: str) -> None:
    before = (await store.list(prefix)).revision
    value = b"\x00\n" * 5000
    at = (await store.txn([], [Put(f"{prefix}{n:03d}", value) for n in range(100)])).revision
    (seen,) = await changes_until(store, prefix, before + 1, at)
    assert [change.key for change in seen.changes] == [f"{prefix}{n:03d}" for n in range(100)]
    assert all(change.kv and change.kv.value == value for change in seen.changes)


async def test_history_that_is_compacted_says_so(server: Server, store: Store, prefix: str) -> None:
    first = await put(store, f"{prefix}a")
    last = await put(store, f"{prefix}b")
    await server.compact(last)
    with pytest.raises(Compacted) as raised:
        await changes_until(store, prefix, first, last)
    assert raised.value.revision == last
    after = await put(store, f"{prefix}c")
    assert keys_of(await changes_until(store, prefix, last + 1, after)) == [f"{prefix}c"]


async def test_compaction_does_not_disturb_a_live_watch(server: Server, store: Store, prefix: str) -> None:
    start = await put(store, f"{prefix}a")
    async with aclosing(store.watch(prefix, start)) as watch:
        await take(watch, 1)
        last = await put(store, f"{prefix}b")
        await server.compact(last)
        await put(store, f"{prefix}c")
        assert keys_of(await take(watch, 2)) == [f"{prefix}b", f"{prefix}c"]


async def test_a_deletion_at_the_compacted_revision_is_not_lost(server: Server, store: Store, prefix: str) -> None:
    """etcd drops it without a word when a watch begins exactly there."""
    start = await put(store, f"{prefix}a")
    async with aclosing(store.watch(prefix, start)) as watch:
        await take(watch, 1)
        await server.kill()
        await server.start()
        deleted = (await store.txn([], [Delete(f"{prefix}a")])).revision
        await server.compact(deleted)
        await put(store, f"{prefix}b")
        with pytest.raises(Compacted):
            await take(watch, 1)
    with pytest.raises(Compacted):
        await changes_until(store, prefix, deleted, deleted)


async def test_kill_9_and_restart_lose_and_repeat_nothing(server: Server, store: Store, prefix: str) -> None:
    names = [f"{prefix}{n:03d}" for n in range(300)]
    start = (await store.list(prefix)).revision + 1

    async def write() -> None:
        for n, name in enumerate(names):
            if n in (100, 200):
                await server.kill()
                await server.start()
            await put_once(store, name)

    async with aclosing(store.watch(prefix, start)) as watch:
        writing = asyncio.create_task(write())
        seen = await take(watch, 300)
        await writing
    assert keys_of(seen) == names


async def test_a_server_that_stops_answering_is_survived(server: Server, store: Store, prefix: str) -> None:
    hasty = server.client(call_timeout=0.5, stall=0.5)
    start = await put(store, f"{prefix}a")
    async with aclosing(hasty.watch(prefix, start)) as watch:
        await take(watch, 1)
        following = asyncio.create_task(take(watch, 1))
        server.pause()
        try:
            with pytest.raises(StoreUnavailable):
                await hasty.get(f"{prefix}a")
            with pytest.raises(StoreError):  # nobody can know whether it was applied
                await hasty.txn([], [Put(f"{prefix}lost", b"")])
            await asyncio.sleep(0.6)  # past the stall: the watch is on its next connection now
        finally:
            server.resume()
        await put_once(hasty, f"{prefix}lost")
        assert keys_of(await following) == [f"{prefix}lost"]
    await hasty.close()


async def test_watches_that_are_closed_leave_nothing_behind(server: Server, store: Store, prefix: str) -> None:
    start = await put(store, f"{prefix}a")
    await watched(server, 0)  # those of earlier tests are about to end
    watches = [store.watch(prefix, start) for _ in range(50)]
    await asyncio.gather(*(take(watch, 1) for watch in watches))
    assert await server.watchers() == 50
    cancelled = [asyncio.create_task(take(watch, 1)) for watch in watches[:10]]
    await asyncio.sleep(0)
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*cancelled, return_exceptions=True)
    for watch in watches:
        await watch.aclose()
    await watched(server, 0)


async def watched(server: Server, most: int) -> None:
    """Until there are so few watches."""
    async with asyncio.timeout(PATIENCE_S):
        while await server.watchers() > most:  # noqa: ASYNC110 - etcd tells by its metrics only
            await asyncio.sleep(0.05)


async def test_many_watches_do_not_starve_calls(store: Store, prefix: str) -> None:
    start = await put(store, f"{prefix}a")
    watches = [store.watch(prefix, start) for _ in range(120)]  # more than aiohttp's pool of 100
    await asyncio.gather(*(take(watch, 1) for watch in watches))
    assert await store.get(f"{prefix}a")
    await put(store, f"{prefix}b")
    seen = await asyncio.gather(*(take(watch, 1) for watch in watches))
    assert all(keys_of(batches) == [f"{prefix}b"] for batches in seen)
    for watch in watches:
        await watch.aclose()


async def test_a_watch_ahead_of_the_store_says_so(store: Store, prefix: str) -> None:
    """Whoever resumes in a store that lost its data must hear of it, and not wait until it has come that far."""
    at = await put(store, f"{prefix}a")
    with pytest.raises(Rewound, match=str(at)):
        async with aclosing(store.watch(prefix, at + 1000)) as watch:
            await anext(watch)
