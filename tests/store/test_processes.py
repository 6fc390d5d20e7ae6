"""Elections between processes: kill -9, and etcd's own `etcdctl elect` as the other candidate."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from coordinator.embedded import find_binary
from coordinator.store.election import Election
from coordinator.store.session import open_session
from tests.helpers.etcd import RealEtcd
from tests.helpers.store import PATIENCE_S, appears

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def child(*command: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, cwd=ROOT)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)).decode().strip()


async def test_a_leader_killed_with_9_is_followed(real: RealEtcd, prefix: str) -> None:
    store = real.client()
    async with child(sys.executable, "-m", "tests.helpers.candidate", real.url, prefix, "1") as other:
        leader = await line(other)
        assert leader.startswith(prefix)
        async with open_session(store, 30) as session:
            election = Election(store, session, b"here", prefix=prefix)
            campaign = asyncio.create_task(election.campaign())
            await appears(store, election.key)
            assert not campaign.done()
            other.kill()
            mine = await asyncio.wait_for(campaign, PATIENCE_S)
            assert await store.get(leader) is None
            assert mine.key == election.key
    await store.close()


async def test_we_follow_etcdctl_and_it_follows_us(real: RealEtcd, prefix: str) -> None:
    store = real.client()
    etcdctl = [str(find_binary({}).with_name("etcdctl")), f"--endpoints={real.url}", "elect", prefix[:-1]]
    async with open_session(store, 30) as session, child(*etcdctl, "first") as first:
        leader = await line(first)
        assert leader.startswith(prefix)
        election = Election(store, session, b"second", prefix=prefix)
        campaign = asyncio.create_task(election.campaign())
        await appears(store, election.key)
        assert not campaign.done()
        first.send_signal(signal.SIGINT)  # it resigns
        mine = await asyncio.wait_for(campaign, PATIENCE_S)
        async with child(*etcdctl, "third") as third:
            rest = [line(third), asyncio.wait_for(third.wait(), 0.5)]
            said = asyncio.create_task(rest[0])
            try:
                await rest[1]
            except TimeoutError:
                assert not said.done()
            await election.resign(mine)
            assert (await said).startswith(prefix)
            third.send_signal(signal.SIGINT)
            await third.wait()
    await store.close()
