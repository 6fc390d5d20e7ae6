"""PROTOCOL rules 8-10: crashes, hangs and reclaims of real processes."""

from __future__ import annotations

from contextlib import aclosing

import pytest

from coordinator.core.model import Order
from coordinator.store import keys
from coordinator.store.follow import follow
from tests.helpers.daemon import DaemonProcess
from tests.helpers.eventually import eventually
from tests.helpers.leader import Leader
from tests.helpers.puppet import Puppet, PuppetRefused
from tests.helpers.puppet_engine import CHUNK, PuppetEngine, puppet_engine

SIGKILLED = -9
SHORT_TTL = 6
"""Seconds, without keep-alives, from when all processes are there: long enough that a crowded machine comes to the
grant, short enough to wait for."""


async def gone(leader: Leader, key: str) -> None:
    """Until nothing stands there."""
    async with aclosing(follow(leader.store, key)) as news:
        async for _ in news:
            if await leader.store.get(key) is None:
                return


async def empty(leader: Leader, device: str) -> None:
    await leader.until(device, lambda s: not s.owners and s.open is None and s.free_measured == s.capacity)


async def takes_everything(leader: Leader, engine: PuppetEngine) -> None:
    """Another engine gets all pages of the device: none is lost."""
    await engine.restore(32, 9)
    assert (await leader.closed(engine.device)).charged == 32 * CHUNK
    await engine.offload()


async def test_a_killed_worker_gives_its_pages_back_and_ends_its_engine(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader, "a", workers=2) as a, puppet_engine(daemon, leader, "b") as b:
        fence = await a.begin()
        await a.workers[0].map(a.device, 4, 1)
        await a.workers[1].map(a.device, 4, 1)
        await a.leave(fence)
        a.workers[0].kill()
        assert await a.agent.ended() == SIGKILLED
        assert await a.workers[1].ended() == SIGKILLED
        await gone(leader, keys.spec(a.spec.holder.engine))  # its lease is revoked: no TTL passes
        await empty(leader, a.device)
        await takes_everything(leader, b)


@pytest.mark.parametrize("victim", ["agent", "worker"])
async def test_killed_in_the_midst_of_an_operation_it_is_closed(
    daemon: DaemonProcess, leader: Leader, victim: str
) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        fence = await a.begin()
        await a.worker.map(a.device, 8, 1)
        (a.agent if victim == "agent" else a.worker).kill()
        for process in (a.agent, a.worker):
            assert await process.ended() == SIGKILLED
        assert (await leader.closed(a.device, fence)).closed == fence.revision
        await empty(leader, a.device)
        await takes_everything(leader, b)


async def test_an_agent_that_does_not_end_keeps_neither_pages_nor_the_device(
    daemon: DaemonProcess, leader: Leader
) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        fence = await a.begin()
        await a.worker.map(a.device, 8, 1)
        a.agent.stop()
        a.worker.kill()
        await leader.closed(a.device, fence)
        await takes_everything(leader, b)
        assert await a.agent.ended() == SIGKILLED


async def test_killed_before_it_entered_its_seat_is_closed(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader) as a:
        fence = await leader.grant(a.spec, Order.RESTORE, CHUNK)
        a.agent.kill()
        assert (await leader.closed(a.device, fence)).owners == ()


async def test_hanging_up_is_not_death(daemon: DaemonProcess, leader: Leader) -> None:
    """A second connection of each process comes and goes, the operation and the pages stay."""
    async with puppet_engine(daemon, leader) as a:
        fence = await a.begin()
        a.chunks = await a.worker.map(a.device, 3, 5)
        await a.worker.call("reconnect")
        await a.agent.call("reconnect")
        a.chunks += await a.worker.map(a.device, 1, 5)
        await a.leave(fence)
        state = await leader.closed(a.device)
        assert [(owner.pid, owner.bytes.total) for owner in state.owners] == [(a.worker.pid, 4 * CHUNK)]
        await a.offload()


async def test_stopped_past_its_lease_with_free_memory_it_is_refused_when_it_resumes(
    daemon: DaemonProcess, leader: Leader
) -> None:
    """Nobody needs its pages: it is not killed, but what it believes in is over."""
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        a.spec = await leader.register_again(a.spec, ttl=SHORT_TTL)
        fence = await leader.grant(a.spec, Order.RESTORE, CHUNK)
        a.agent.stop()
        await gone(leader, keys.token(a.device))
        await b.restore(4, 2)
        a.agent.resume()
        with pytest.raises(PuppetRefused, match="stale"):
            await a.enter(fence)
        a.spec = await leader.register_again(a.spec)
        await a.restore(4, 1)
        assert {owner.holder for owner in (await leader.closed(a.device)).owners} == {a.spec.holder, b.spec.holder}


async def test_stopped_past_its_lease_as_a_resident_it_keeps_its_pages(daemon: DaemonProcess, leader: Leader) -> None:
    """Expiry never frees pages."""
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        a.spec = await leader.register_again(a.spec, ttl=SHORT_TTL)
        await a.restore(20, 1)
        a.agent.stop()
        a.worker.stop()
        await gone(leader, keys.spec(a.spec.holder.engine))
        fence = await b.begin()
        with pytest.raises(PuppetRefused, match="no_space"):
            await b.worker.map(b.device, 13, 2)
        b.chunks = await b.worker.map(b.device, 12, 2)
        await b.leave(fence)
        a.worker.resume()
        assert set((await a.worker.fills()).values()) == {1}  # type: ignore[attr-defined]


@pytest.mark.parametrize("inside", [True, False], ids=["in an operation", "resident"])
async def test_a_stopped_holder_is_reclaimed_under_pressure(
    daemon: DaemonProcess, leader: Leader, inside: bool
) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        if inside:
            await a.begin()
            await a.worker.map(a.device, 20, 1)
        else:
            await a.restore(20, 1)
        a.agent.stop()
        a.worker.stop()
        fence = await leader.reclaim(a.spec)
        for process in (a.agent, a.worker):
            assert await process.ended() == SIGKILLED
        state = await leader.closed(a.device, fence)
        assert (state.owners, state.open) == ((), None)
        await gone(leader, keys.spec(a.spec.holder.engine))
        await takes_everything(leader, b)


async def test_a_reclaim_kills_nobody_but_its_target(daemon: DaemonProcess, leader: Leader) -> None:
    """Another start of the same engine, and other engines, go on."""
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        await b.restore(2, 2)
        engine = a.spec.holder.engine
        newer = await leader.register(engine, (a.device,), nonce="second start")
        async with await Puppet.start(daemon.socket, engine, "second start", "agent") as second:
            await second.hello()
            fence = await leader.reclaim(a.spec)
            assert await a.worker.ended() == SIGKILLED
            await leader.closed(a.device, fence)
            assert second.alive
            await leader.grant(newer, Order.RESTORE, CHUNK)
            assert set((await b.worker.fills()).values()) == {2}  # type: ignore[attr-defined]


async def test_a_reclaim_of_an_owner_without_spec(daemon: DaemonProcess, leader: Leader) -> None:
    """Lost, still charged, until the leader has enough of it."""
    async with puppet_engine(daemon, leader) as a:
        await a.restore(2, 1)
        await leader.store.revoke_lease(a.spec.lease)
        state = await leader.closed(a.device)
        assert [owner.holder for owner in state.owners] == [a.spec.holder]
        await leader.closed(a.device, await leader.reclaim(a.spec))
        assert await a.worker.ended() == SIGKILLED
        await empty(leader, a.device)


async def test_no_process_of_an_ended_engine_is_welcome(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader) as a:
        await a.restore(1, 1)
        a.worker.kill()
        await a.agent.ended()
        holder = a.spec.holder
        await leader.register(holder.engine, (a.device,), nonce=holder.nonce)
        async with await Puppet.start(daemon.socket, holder.engine, holder.nonce, "worker") as late:
            with pytest.raises(PuppetRefused, match="forbidden"):
                await late.hello()


async def test_nothing_is_left_of_ended_engines(daemon: DaemonProcess, leader: Leader) -> None:
    """I6: descriptors and processes are back at the baseline (the first engine only warms up)."""
    baseline = 0
    for round_ in range(4):
        async with puppet_engine(daemon, leader, workers=2) as a:
            await a.restore(3, round_)
            a.workers[1].kill()
            await a.agent.ended()
        await empty(leader, a.device)
        await gone(leader, keys.spec(a.spec.holder.engine))
        baseline = baseline or daemon.open_descriptors()
    await eventually(lambda: daemon.open_descriptors() <= baseline, "a descriptor is left")
