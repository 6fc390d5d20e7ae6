"""Contract: leases and what stands on them."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.errors import LeaseLost
from coordinator.store.base import Put, Store
from coordinator.store.session import open_session
from tests.helpers.store import PATIENCE_S, changes_until, put
from tests.store.conftest import Server


async def test_keys_of_a_lease_vanish_together_in_key_order(store: Store, prefix: str) -> None:
    lease = await store.grant_lease(60)
    for name in ("c", "a", "b"):
        await put(store, prefix + name, lease=lease)
    last = await put(store, f"{prefix}stays")
    await store.revoke_lease(lease)
    (gone,) = await changes_until(store, prefix, last + 1, last + 1)
    assert [(change.key, change.kv) for change in gone.changes] == [(prefix + name, None) for name in "abc"]
    assert [kv.key for kv in (await store.list(prefix)).kvs] == [f"{prefix}stays"]


async def test_a_listing_tells_the_lease(store: Store, prefix: str) -> None:
    lease = await store.grant_lease(60)
    await put(store, f"{prefix}a", lease=lease)
    standing = await store.get(f"{prefix}a")
    assert standing is not None
    assert standing.lease == lease
    await store.revoke_lease(lease)


async def test_the_last_put_decides_which_lease_carries_a_key(store: Store, prefix: str) -> None:
    first, second = await store.grant_lease(60), await store.grant_lease(60)
    await store.txn([], [Put(f"{prefix}moved", b"", first), Put(f"{prefix}freed", b"", first)])
    await put(store, f"{prefix}moved", lease=second)
    await put(store, f"{prefix}freed")
    await store.revoke_lease(first)
    assert [kv.key for kv in (await store.list(prefix)).kvs] == [f"{prefix}freed", f"{prefix}moved"]
    await store.revoke_lease(second)
    assert [kv.key for kv in (await store.list(prefix)).kvs] == [f"{prefix}freed"]


async def test_keep_alive_tells_the_ttl_and_a_gone_lease_is_lost(store: Store) -> None:
    lease = await store.grant_lease(7)
    assert await store.keep_alive(lease) == 7.0
    await store.revoke_lease(lease)
    await store.revoke_lease(lease)  # gone already is fine
    with pytest.raises(LeaseLost):
        await store.keep_alive(lease)


async def test_leases_have_different_random_ids(store: Store) -> None:
    leases = [await store.grant_lease(60) for _ in range(8)]
    assert len(set(leases)) == 8
    assert all(0 < lease < 1 << 63 for lease in leases)
    for lease in leases:
        await store.revoke_lease(lease)


async def test_a_lease_that_is_not_renewed_expires_with_its_keys(store: Store, prefix: str) -> None:
    lease = await store.grant_lease(1)
    at = await put(store, f"{prefix}a", lease=lease)
    (gone,) = await changes_until(store, prefix, at + 1, at + 1)
    assert gone.changes[0].kv is None
    with pytest.raises(LeaseLost):
        await store.keep_alive(lease)


async def test_a_session_keeps_its_keys_and_revokes_them_at_exit(
    store: Store, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed = asyncio.Semaphore(0)
    renew = store.keep_alive

    async def count(lease: int) -> float:
        ttl = await renew(lease)
        renewed.release()
        return ttl

    monkeypatch.setattr(store, "keep_alive", count)
    async with open_session(store, 3) as session:
        await put(store, f"{prefix}a", lease=session.lease)
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(8):  # well past the life it was granted
                await renewed.acquire()
        assert session.alive
        assert await store.get(f"{prefix}a")
    assert await store.get(f"{prefix}a") is None


async def test_a_session_whose_lease_is_revoked_is_lost(store: Store) -> None:
    async with open_session(store, 1) as session:
        await store.revoke_lease(session.lease)
        async with asyncio.timeout(PATIENCE_S):
            await session.lost.wait()
        assert not session.alive


async def test_a_session_is_lost_at_its_deadline_when_etcd_is_away(server: Server, store: Store) -> None:
    async with open_session(store, 1) as session:
        server.pause()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await session.lost.wait()
        finally:
            server.resume()
        assert not session.alive


async def test_leases_start_anew_after_a_restart(server: Server, store: Store, prefix: str) -> None:
    async with open_session(store, 30) as session:
        await put(store, f"{prefix}a", lease=session.lease)
        await server.kill()
        await server.start()
        assert await store.keep_alive(session.lease) == 30.0
        assert await store.get(f"{prefix}a")
