"""Contract: a prefix kept in view, through compaction, doubt and garbage; the epoch."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from coordinator.core.events import PolicySeen
from coordinator.core.model import Policy
from coordinator.errors import SchemaError
from coordinator.store import keys
from coordinator.store.base import Changes, Delete, Listing, Put, Store
from coordinator.store.codec import encode
from coordinator.store.epoch import ensure_epoch
from coordinator.store.facts import Reader
from coordinator.store.follow import follow
from tests.helpers.store import keys_of, put, take
from tests.store.conftest import Server


async def test_first_what_stands_then_what_changes(store: Store, prefix: str) -> None:
    await put(store, f"{prefix}a")
    async with aclosing(follow(store, prefix, doubt=None)) as updates:
        (listing,) = await take(updates, 1)
        assert isinstance(listing, Listing)
        assert [kv.key for kv in listing.kvs] == [f"{prefix}a"]
        at = await put(store, f"{prefix}b")
        (changes,) = await take(updates, 1)
        assert isinstance(changes, Changes)
        assert (keys_of([changes]), changes.revision) == ([f"{prefix}b"], at)


async def test_nothing_falls_between_the_listing_and_the_watch(store: Store, prefix: str) -> None:
    await put(store, f"{prefix}a")
    async with aclosing(follow(store, prefix, doubt=None)) as updates:
        await take(updates, 1)
        await put(store, f"{prefix}b")
        await store.txn([], [Delete(f"{prefix}a")])
        seen = await take(updates, 2)
    assert [type(update) for update in seen] == [Changes, Changes]


async def test_compacted_history_is_listed_again(server: Server, store: Store, prefix: str) -> None:
    await put(store, f"{prefix}a")
    async with aclosing(follow(store, prefix, doubt=None)) as updates:
        await take(updates, 1)
        await server.kill()
        await server.start()
        await put(store, f"{prefix}b")
        await server.compact(await put(store, f"{prefix}c"))
        seen: list[Listing | Changes] = []
        while not seen or not isinstance(seen[-1], Listing):
            seen += await take(updates, 1)  # what the watch had received before it broke may come first
        assert [kv.key for kv in seen[-1].kvs] == [f"{prefix}{name}" for name in "abc"]
        await put(store, f"{prefix}d")
        (changes,) = await take(updates, 1)
        assert isinstance(changes, Changes)


async def test_doubt_lists_again_and_is_silent_where_there_is_no_news(store: Store, prefix: str) -> None:
    """The heartbeat does not tick: the view is checked again and again, its owner hears of real changes only."""
    await put(store, f"{prefix}a")
    async with aclosing(follow(store, prefix, doubt=0.05)) as updates:
        await take(updates, 1)
        waiting = asyncio.create_task(take(updates, 1))
        await asyncio.sleep(0.3)  # several doubts long
        assert not waiting.done()
        await put(store, f"{prefix}b")
        (update,) = await waiting
        found = {kv.key for kv in update.kvs} if isinstance(update, Listing) else {*keys_of([update])}
        assert f"{prefix}b" in found


async def test_who_doubts_says_so_and_says_when_all_is_as_it_was(store: Store, prefix: str) -> None:
    heard: asyncio.Queue[bool] = asyncio.Queue()
    await put(store, f"{prefix}a")
    async with aclosing(follow(store, prefix, doubt=0.05, current=heard.put_nowait)) as updates:
        await take(updates, 1)
        assert heard.empty()
        waiting = asyncio.create_task(take(updates, 1))
        assert [await heard.get() for _ in range(4)] == [False, True, False, True]
        await put(store, f"{prefix}b")
        await waiting


async def test_garbage_is_quarantined_until_it_is_replaced(store: Store) -> None:
    key = keys.policy("a/model")
    reader = Reader()
    await put(store, key, b'{"v":1,"priority":1e99}')
    async with aclosing(follow(store, keys.ROOT, doubt=None)) as updates:
        (listing,) = await take(updates, 1)
        assert isinstance(listing, Listing)
        assert PolicySeen not in {type(fact) for fact in reader.listed(listing).facts if not _gone(fact)}
        assert (list(reader.quarantined), reader.rejected) == ([key], 1)

        at = await put(store, key, encode(Policy(pin=True)))
        (changes,) = await take(updates, 1)
        assert isinstance(changes, Changes)
        assert reader.changed(changes).facts == (PolicySeen("a/model", Policy(pin=True), at),)
        assert reader.quarantined == {}

        at = await put(store, key, b"\xff\xfe")
        (changes,) = await take(updates, 1)
        assert isinstance(changes, Changes)
        assert reader.changed(changes).facts == (PolicySeen("a/model", None, at),)
        assert (list(reader.quarantined), reader.rejected) == ([key], 2)

        await store.txn([], [Delete(key)])
        (changes,) = await take(updates, 1)
        assert isinstance(changes, Changes)
        reader.changed(changes)
        assert (reader.quarantined, reader.rejected) == ({}, 2)


def _gone(fact: object) -> bool:
    return isinstance(fact, PolicySeen) and fact.policy is None


async def test_of_many_who_find_no_epoch_one_creates_it(server: Server, store: Store) -> None:
    await store.txn([], [Delete(keys.EPOCH)])
    ids = iter("abcdefgh")
    epochs = await asyncio.gather(*(ensure_epoch(store, lambda: next(ids)) for _ in range(8)))
    assert len({epoch.id for epoch in epochs}) == 1
    assert (await ensure_epoch(store)).id == epochs[0].id


async def test_an_epoch_that_does_not_decode_is_left_alone(store: Store) -> None:
    await store.txn([], [Put(keys.EPOCH, b"{}")])
    with pytest.raises(SchemaError):
        await ensure_epoch(store)
    await store.txn([], [Delete(keys.EPOCH)])
