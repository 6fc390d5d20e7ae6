"""PROTOCOL rules 5-8 between real processes: the daemon, engines, etcd."""

from __future__ import annotations

import pytest

from coordinator.core.model import Order
from coordinator.store import keys
from tests.helpers.daemon import DaemonProcess
from tests.helpers.leader import Granted, Leader
from tests.helpers.puppet import Puppet, PuppetRefused
from tests.helpers.puppet_engine import CHUNK, puppet_engine

ALL = 32
"""Chunks of the device."""


def refused(code: str) -> pytest.RaisesExc[PuppetRefused]:
    return pytest.RaisesExc(PuppetRefused, check=lambda error: error.code == code)


async def test_two_engines_take_turns_in_the_same_pages(daemon: DaemonProcess, leader: Leader) -> None:
    device = daemon.ids[0]
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        await a.restore(ALL, 1)
        mine = set(a.chunks)
        state = await leader.closed(device)
        assert [(owner.holder, owner.bytes.weights) for owner in state.owners] == [(a.spec.holder, ALL * CHUNK)]
        await a.offload()
        state = await leader.closed(device)
        assert (state.owners, state.open, state.free_measured) == ((), None, state.capacity)
        await b.restore(ALL, 2)
        assert set(b.chunks) == mine
        assert set((await b.worker.call("fills")).values()) == {2}  # type: ignore[attr-defined]
        state = await leader.closed(device)
        assert [owner.holder for owner in state.owners] == [b.spec.holder]


async def test_kinds_are_told_apart(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader) as a:
        fence = await a.begin()
        await a.worker.map(a.device, 3, 1, "weights")
        await a.worker.map(a.device, 2, 1, "kv")
        await a.leave(fence)
        (owner,) = (await leader.closed(a.device)).owners
        assert (owner.bytes.weights, owner.bytes.kv, owner.pid) == (3 * CHUNK, 2 * CHUNK, a.worker.pid)


async def test_weights_and_kv_of_a_restore_come_in_one_call(daemon: DaemonProcess, leader: Leader) -> None:
    """Weights on what others left, KV on zeros, though others had all of the device; all or none."""
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        await a.restore(ALL, 0xFF)
        await a.offload()
        fence = await b.begin(size=8 * CHUNK)
        with refused("no_space"):
            await b.worker.map(b.device, 5, 1, "weights", True, 4)
        with refused("bad_request"):
            await b.worker.map(b.device, 1, 1, "kv", False, 1)
        ids = await b.worker.map(b.device, 5, 1, "weights", True, 3)
        await b.leave(fence)
        (owner,) = (await leader.closed(b.device)).owners
        assert (owner.bytes.weights, owner.bytes.kv) == (5 * CHUNK, 3 * CHUNK)
        fence = await b.begin(Order.OFFLOAD, size=0)
        await b.worker.unmap(b.device, ids)
        await b.leave(fence)
        assert (await leader.closed(b.device)).charged == 0


async def test_an_old_fence_is_refused(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        old = await a.restore(1, 1)
        with refused("stale"):
            await a.enter(old)
        newer = await leader.grant(b.spec, Order.RESTORE, CHUNK)
        with refused("stale"):
            await a.enter(old)
        with refused("stale"):
            await a.enter(newer)
        with refused("stale"):
            await a.enter(Granted("made up", newer.revision))
        with refused("timeout"):
            await a.enter(Granted(newer.epoch, newer.revision + 1000), timeout_s=0.5)
        await b.enter(newer)


async def test_the_daemons_own_view_decides(daemon: DaemonProcess, leader: Leader) -> None:
    """The token goes with its lease: the engine still believes in it, the daemon does not."""
    async with puppet_engine(daemon, leader) as a:
        fence = await leader.grant(a.spec, Order.RESTORE, CHUNK)
        await leader.store.revoke_lease(a.spec.lease)
        state = await leader.closed(a.device, fence)
        assert state.closed == fence.revision
        with refused("stale"):
            await a.enter(fence)


async def test_an_entered_operation_outlives_its_lease(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        fence = await a.begin()
        first = await a.worker.map(a.device, 2, 1)
        await leader.store.revoke_lease(a.spec.lease)
        await leader.until(a.device, lambda state: state.open is not None)
        await a.worker.map(a.device, 2, 1)
        await a.worker.unmap(a.device, first)
        assert await leader.try_grant(b.spec, Order.RESTORE, CHUNK) is not None  # a leader that breaks rule 3
        with refused("not_open"):
            await b.worker.map(b.device, 1, 2)
        await a.leave(fence)
        state = await leader.until(a.device, lambda state: state.open is None)
        assert [(owner.holder, owner.bytes.total) for owner in state.owners] == [(a.spec.holder, 2 * CHUNK)]


async def test_an_offloaded_engine_registers_again_and_goes_on(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader) as a:
        await a.restore(2, 1)
        await leader.store.revoke_lease(a.spec.lease)
        a.spec = await leader.register_again(a.spec)
        await a.offload()
        assert (await leader.closed(a.device)).owners == ()


async def test_more_than_the_grant_or_the_capacity_is_denied(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        fence = await a.begin(size=4 * CHUNK)
        with refused("no_space"):
            await a.worker.map(a.device, 5, 1)
        await a.worker.map(a.device, 4, 1)
        with refused("no_space"):
            await a.worker.map(a.device, 1, 1)
        await a.leave(fence)
        fence = await b.begin()
        with refused("no_space"):
            await b.worker.map(b.device, ALL - 3, 2)
        await b.worker.map(b.device, ALL - 4, 2)
        await b.leave(fence)
        assert (await leader.closed(a.device)).charged == ALL * CHUNK


async def test_mapping_needs_the_open_operation(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        await a.restore(2, 1)
        for pages in (a.worker.map(a.device, 1, 1), a.worker.unmap(a.device, a.chunks)):
            with refused("not_open"):
                await pages
        fence = await b.begin()
        for pages in (a.worker.map(a.device, 1, 1), a.worker.unmap(a.device, a.chunks)):
            with refused("not_open"):
                await pages
        with refused("bad_request"):
            await b.worker.unmap(b.device, a.chunks)
        await b.leave(fence)
        assert (await leader.closed(a.device)).charged == 2 * CHUNK


async def test_roles_are_kept_apart(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader) as a:
        fence = await leader.grant(a.spec, Order.RESTORE, CHUNK)
        with refused("forbidden"):
            await a.worker.enter(a.device, fence.epoch, fence.revision)
        await a.enter(fence)
        with refused("forbidden"):
            await a.agent.map(a.device, 1, 1)
        with refused("forbidden"):
            await a.worker.leave(a.device, fence.epoch, fence.revision)
        await a.leave(fence)


async def test_leaving_twice_is_fine_and_leaving_what_was_not_entered_is_not(
    daemon: DaemonProcess, leader: Leader
) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        fence = await a.restore(1, 1)
        await a.leave(fence)
        fence = await leader.grant(a.spec, Order.OFFLOAD, 0)
        with refused("not_open"):
            await a.leave(fence)
        await a.enter(fence)
        with refused("not_open"):
            await b.leave(fence)
        await a.leave(fence)


async def test_a_worker_waits_for_the_operation_of_its_engine(daemon: DaemonProcess, leader: Leader) -> None:
    """Start-up admission: the worker asks before the grant."""
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        with refused("timeout"):
            await a.worker.call("await_open", a.device, 0.2)
        a.worker.send("await_open", a.device, 60.0)
        await b.restore(1, 2)
        fence = await a.begin()
        assert await a.worker.answer() == fence.revision
        await a.leave(fence)


async def test_entering_early_waits_for_the_daemons_view_and_for_others(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        open_fence = await a.begin()
        next_fence = await leader.try_grant(b.spec, Order.RESTORE, CHUNK)  # a leader that breaks rule 3
        assert next_fence is not None
        b.agent.send("enter", b.device, next_fence.epoch, next_fence.revision, 60.0)
        await a.leave(open_fence)
        assert (await b.agent.answer())[1] == next_fence.revision  # type: ignore[index]
        await b.leave(next_fence)


async def test_a_gang_enters_all_its_devices_under_one_fence(daemon: DaemonProcess, leader: Leader) -> None:
    both = tuple(daemon.ids)
    async with (
        puppet_engine(daemon, leader, "gang", devices=both, workers=2) as gang,
        puppet_engine(daemon, leader, "b", devices=both[1:]) as b,
    ):
        fence = await gang.begin()
        for worker, device in zip(gang.workers, both, strict=True):
            await worker.map(device, 4, 1)
        await gang.leave(fence)
        for device in both:
            state = await leader.closed(device, fence)
            assert (state.closed, state.charged) == (fence.revision, 4 * CHUNK)
        await b.restore(12, 2)
        assert (await leader.closed(both[0])).closed == fence.revision


@pytest.mark.parametrize("daemon_options", [{"more": ("--hello-timeout", "0.5")}])
async def test_a_forged_nonce_is_refused(own_daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(own_daemon, leader) as a:
        engine, nonce = a.spec.holder.engine, a.spec.holder.nonce
        for forged in ((engine, "guessed"), ("nobody", nonce)):
            async with await Puppet.start(own_daemon.socket, *forged, "worker") as thief:
                with refused("forbidden"):
                    await thief.hello()
        await a.restore(1, 1)


async def test_an_engine_may_say_hello_before_its_spec_is_seen(daemon: DaemonProcess, leader: Leader) -> None:
    engine = f"{daemon.node}-early"
    async with await Puppet.start(daemon.socket, engine, "n1", "agent") as early:
        early.send("hello")
        await leader.register(engine, daemon.ids, nonce="n1")
        assert await early.answer() == {"0": CHUNK, "1": CHUNK}


async def test_what_stands_in_etcd_is_on_the_daemons_lease_and_goes_with_it(
    own_daemon: DaemonProcess, leader: Leader
) -> None:
    ours = [kv for kv in (await leader.store.list(keys.ROOT)).kvs if f"nodes/{own_daemon.node}/" in kv.key]
    assert len(ours) == 2
    assert len({kv.lease for kv in ours}) == 1
    assert await own_daemon.stop() == 0
    assert not own_daemon.socket.exists()
    assert await leader.store.get(keys.device(own_daemon.ids[0])) is None
