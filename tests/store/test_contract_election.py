"""Contract: one leads, the oldest; its end makes the next one lead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from coordinator.errors import LeaseLost
from coordinator.store.base import KeyValue, Put, Store
from coordinator.store.election import Election, Leadership, observe
from coordinator.store.session import Session, open_session
from tests.helpers.store import PATIENCE_S, appears, put, take
from tests.store.conftest import Server


@asynccontextmanager
async def candidate(store: Store, prefix: str, name: str, ttl: int = 30) -> AsyncIterator[tuple[Election, Session]]:
    async with open_session(store, ttl) as session:
        yield Election(store, session, name.encode(), prefix=prefix, doubt=None), session


async def test_the_leader_proves_itself_by_key_and_create_revision(store: Store, prefix: str) -> None:
    async with candidate(store, prefix, "a") as (election, session):
        mine = await election.campaign()
        standing = await store.get(mine.key)
        assert mine.key == f"{prefix}{session.lease:x}"
        assert standing == KeyValue(mine.key, b"a", mine.create_revision, mine.create_revision, session.lease)
        assert (await store.txn([mine.holds()], [Put(f"{prefix[:-1]}-written", b"")])).succeeded


async def test_of_two_the_first_leads_and_the_second_follows(store: Store, prefix: str) -> None:
    async with candidate(store, prefix, "a") as (a, _), candidate(store, prefix, "b") as (b, _):
        first = await a.campaign()
        second = asyncio.create_task(b.campaign())
        await appears(store, b.key)
        assert not second.done()
        await a.resign(first)
        mine = await asyncio.wait_for(second, PATIENCE_S)
        assert mine.create_revision > first.create_revision
        assert not (await store.txn([first.holds()], [Put(f"{prefix[:-1]}-written", b"")])).succeeded


async def test_of_many_at_once_exactly_one_leads_at_a_time(store: Store, prefix: str) -> None:
    leading: list[str] = []

    async def serve(name: str) -> str:
        async with candidate(store, prefix, name) as (election, _):
            mine = await election.campaign()
            leading.append(name)
            assert leading == [name]
            await asyncio.sleep(0)
            leading.remove(name)
            await election.resign(mine)
            return name

    names = [f"c{n}" for n in range(8)]
    async with asyncio.timeout(PATIENCE_S):
        assert sorted(await asyncio.gather(*map(serve, names))) == names


async def test_a_leader_that_dies_is_followed_when_its_lease_ends(server: Server, store: Store, prefix: str) -> None:
    """Death: no resignation, no revocation, no keep-alive."""
    lease = await store.grant_lease(1)
    await put(store, f"{prefix}{lease:x}", b"dead", lease=lease)
    async with candidate(store, prefix, "next") as (election, _):
        await asyncio.wait_for(election.campaign(), PATIENCE_S)


async def test_a_candidate_that_gives_up_leaves_no_key(store: Store, prefix: str) -> None:
    async with candidate(store, prefix, "a") as (a, _), candidate(store, prefix, "b") as (b, _):
        await a.campaign()
        waiting = asyncio.create_task(b.campaign())
        await appears(store, b.key)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await store.get(b.key) is None


async def test_a_candidate_whose_lease_is_lost_is_told(store: Store, prefix: str) -> None:
    async with candidate(store, prefix, "a") as (a, _), candidate(store, prefix, "b", 1) as (b, session):
        await a.campaign()
        waiting = asyncio.create_task(b.campaign())
        await appears(store, b.key)
        await store.revoke_lease(session.lease)
        with pytest.raises(LeaseLost):
            await asyncio.wait_for(waiting, PATIENCE_S)


async def test_a_leader_hears_that_it_leads_no_more(store: Store, prefix: str) -> None:
    async with candidate(store, prefix, "a") as (election, session):
        mine = await election.campaign()
        over = asyncio.create_task(election.until_lost(mine))
        await asyncio.sleep(0.05)
        assert not over.done()
        await store.revoke_lease(session.lease)
        await asyncio.wait_for(over, PATIENCE_S)


async def test_campaigning_again_keeps_the_place(store: Store, prefix: str) -> None:
    async with candidate(store, prefix, "a") as (election, _):
        assert await election.campaign() == await election.campaign()


async def test_observers_see_who_leads(store: Store, prefix: str) -> None:
    async with aclosing(observe(store, prefix, doubt=None)) as leaders:
        assert await take(leaders, 1) == [None]
        async with candidate(store, prefix, "a") as (a, _), candidate(store, prefix, "b") as (b, _):
            first = await a.campaign()
            assert _names(await take(leaders, 1)) == [b"a"]
            second = asyncio.create_task(b.campaign())
            await a.resign(first)
            while (seen := _names(await take(leaders, 1))) != [b"b"]:
                assert seen == [None]  # between the two, if b was late
            assert isinstance(await second, Leadership)
        assert await take(leaders, 1) == [None]


def _names(leaders: list[KeyValue | None]) -> list[bytes | None]:
    return [leader.value if leader else None for leader in leaders]
