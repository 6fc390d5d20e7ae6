"""Contract: reads, transactions, compares."""

from __future__ import annotations

import pytest

from coordinator.errors import LeaseLost, StoreError
from coordinator.store.base import (
    Compare,
    CreateRevision,
    Delete,
    KeyValue,
    ModRevision,
    Op,
    Put,
    Store,
    ValueIs,
)
from tests.helpers.store import changes_until, put


async def test_an_absent_key_is_none_and_an_empty_prefix_lists_nothing(store: Store, prefix: str) -> None:
    assert await store.get(f"{prefix}a") is None
    listing = await store.list(prefix)
    assert listing.kvs == ()
    assert listing.revision >= 1


async def test_a_put_keeps_the_create_revision_and_moves_the_mod_revision(store: Store, prefix: str) -> None:
    key = f"{prefix}a"
    first = await put(store, key, b"1")
    second = await put(store, key, b"2")
    assert second == first + 1
    assert await store.get(key) == KeyValue(key, b"2", first, second)


async def test_a_key_put_again_after_deletion_is_a_new_key(store: Store, prefix: str) -> None:
    key = f"{prefix}a"
    await put(store, key)
    await store.txn([], [Delete(key)])
    again = await put(store, key)
    assert await store.get(key) == KeyValue(key, b"", again, again)


async def test_a_listing_is_in_key_order_and_of_its_prefix_only(store: Store, prefix: str) -> None:
    names = ["b", "a/x", "a", "ab", "\xff\xfe", "z%2F", "\U0001f600"]
    for name in names:
        await put(store, f"{prefix}{name}")
    await put(store, f"{prefix[:-1]}0-behind")  # sorts right behind everything under the prefix
    listing = await store.list(prefix)
    assert [kv.key for kv in listing.kvs] == [f"{prefix}{name}" for name in sorted(names, key=str.encode)]
    assert [kv.key for kv in (await store.list(f"{prefix}a")).kvs] == [f"{prefix}{name}" for name in ("a", "a/x", "ab")]


async def test_values_are_bytes_of_any_kind(store: Store, prefix: str) -> None:
    for value in (b"", bytes(range(256)), b"\n", b"x" * 1_000_000):
        await put(store, f"{prefix}v", value)
        standing = await store.get(f"{prefix}v")
        assert standing is not None
        assert standing.value == value


async def test_all_writes_of_a_transaction_share_one_revision(store: Store, prefix: str) -> None:
    before = await put(store, f"{prefix}old")
    ops: list[Op] = [Put(f"{prefix}a", b"1"), Put(f"{prefix}b", b"2"), Delete(f"{prefix}old")]
    result = await store.txn([], ops)
    assert (result.succeeded, result.revision) == (True, before + 1)
    assert {kv.mod_revision for kv in (await store.list(prefix)).kvs} == {before + 1}
    seen = await changes_until(store, prefix, before + 1, before + 1)
    assert [change.key for change in seen[0].changes] == [f"{prefix}a", f"{prefix}b", f"{prefix}old"]
    assert len(seen) == 1


async def test_deleting_a_prefix_deletes_what_starts_with_it(store: Store, prefix: str) -> None:
    for name in ("a", "a/1", "a/2", "b"):
        await put(store, prefix + name)
    await store.txn([], [Delete(f"{prefix}a/", prefix=True)])
    assert [kv.key for kv in (await store.list(prefix)).kvs] == [f"{prefix}a", f"{prefix}b"]


async def test_a_transaction_that_changes_nothing_takes_no_revision(store: Store, prefix: str) -> None:
    before = (await store.list(prefix)).revision
    assert (await store.txn([], [Delete(f"{prefix}none")])).revision == before
    assert (await store.txn([], [])).revision == before
    assert (await store.list(prefix)).revision == before


async def test_compares_hold_or_nothing_happens(store: Store, prefix: str) -> None:
    key, absent = f"{prefix}key", f"{prefix}absent"
    created = await put(store, key, b"1")
    changed = await put(store, key, b"2")
    true: list[Compare] = [
        CreateRevision(key, created),
        ModRevision(key, changed),
        ValueIs(key, b"2"),
        CreateRevision(absent, 0),
        ModRevision(absent, 0),
    ]
    false: list[Compare] = [
        CreateRevision(key, changed),
        CreateRevision(key, 0),
        ModRevision(key, created),
        ModRevision(key, 0),
        ValueIs(key, b"1"),
        ValueIs(absent, b""),
        CreateRevision(absent, 1),
    ]
    for compare in false:
        result = await store.txn([*true, compare], [Put(f"{prefix}written", b"")])
        assert not result.succeeded, compare
        assert result.revision == changed
    assert await store.get(f"{prefix}written") is None
    assert (await store.txn(true, [Put(f"{prefix}written", b"")])).succeeded


async def test_a_put_on_a_dead_lease_fails_the_whole_transaction(store: Store, prefix: str) -> None:
    lease = await store.grant_lease(60)
    await store.revoke_lease(lease)
    with pytest.raises(LeaseLost):
        await store.txn([], [Put(f"{prefix}a", b""), Put(f"{prefix}b", b"", lease)])
    assert (await store.list(prefix)).kvs == ()


@pytest.mark.parametrize(
    "names",
    [("a", "a"), ("",), tuple(str(n) for n in range(129))],
    ids=["one key twice", "no key", "too many"],
)
async def test_what_etcd_refuses_is_refused_and_changes_nothing(
    store: Store, prefix: str, names: tuple[str, ...]
) -> None:
    before = (await store.list(prefix)).revision
    with pytest.raises(StoreError):
        await store.txn([], [Put(prefix + name if name else "", b"") for name in names])
    assert (await store.list("")).revision == before


async def test_a_key_put_and_deleted_in_one_transaction_is_refused(store: Store, prefix: str) -> None:
    with pytest.raises(StoreError):
        await store.txn([], [Put(f"{prefix}a", b""), Delete(prefix, prefix=True)])
    assert (await store.list(prefix)).kvs == ()
