"""PROTOCOL rule 11: the daemon dies, stops and starts again while engines hold its pages."""

from __future__ import annotations

import signal

import pytest

from coordinator.core.model import Order
from coordinator.store import keys
from native.processes import boot_id
from tests.helpers.daemon import DaemonProcess
from tests.helpers.leader import Leader
from tests.helpers.puppet import PuppetRefused
from tests.helpers.puppet_engine import CHUNK, puppet_engine

SIGKILLED = -9


async def again(daemon: DaemonProcess, leader: Leader) -> None:
    """kill -9 and start on the same state."""
    daemon.kill()
    await daemon.ended()
    daemon.start()
    await daemon.ready(leader.store)


async def test_residents_keep_their_pages_and_their_charge(own_daemon: DaemonProcess, leader: Leader) -> None:
    daemon = own_daemon
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        last = await a.restore(20, 1)
        await again(daemon, leader)
        state = await leader.closed(a.device)
        assert state.closed == last.revision
        assert [(o.holder, o.bytes.total, o.pid) for o in state.owners] == [(a.spec.holder, 20 * CHUNK, a.worker.pid)]
        assert set((await a.worker.fills()).values()) == {1}  # type: ignore[attr-defined]
        with pytest.raises(PuppetRefused, match="stale"):
            await a.enter(last)
        fence = await b.begin()
        with pytest.raises(PuppetRefused, match="no_space"):
            await b.worker.map(b.device, 13, 2)
        b.chunks = await b.worker.map(b.device, 12, 2)
        await b.leave(fence)
        await a.offload()
        fence = await b.begin()
        b.chunks += await b.worker.map(b.device, 20, 2)
        await b.leave(fence)
        assert (await leader.closed(b.device)).charged == 32 * CHUNK


async def test_an_open_operation_goes_on(own_daemon: DaemonProcess, leader: Leader) -> None:
    """In the middle of a restore and again in the middle of an offload, its lease gone besides."""
    daemon = own_daemon
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        fence = await a.begin()
        a.chunks = await a.worker.map(a.device, 4, 1)
        await leader.store.revoke_lease(a.spec.lease)
        await again(daemon, leader)
        state = await leader.until(a.device, lambda state: state.open is not None)
        assert state.open is not None
        assert (state.open.holder, state.open.revision) == (a.spec.holder, fence.revision)
        b.agent.send("enter", b.device, fence.epoch, fence.revision, 5.0)
        with pytest.raises(PuppetRefused, match="stale"):
            await b.agent.answer()
        a.chunks += await a.worker.map(a.device, 4, 1)
        await a.leave(fence)
        a.spec = await leader.register_again(a.spec)
        fence = await a.begin(Order.OFFLOAD, size=0)
        await a.worker.unmap(a.device, a.chunks[:3])
        await again(daemon, leader)
        await a.enter(fence)
        await a.worker.unmap(a.device, a.chunks[:3])
        await a.worker.unmap(a.device, a.chunks[3:])
        await a.leave(fence)
        state = await leader.closed(a.device)
        assert (state.closed, state.charged) == (fence.revision, 0)
        await b.restore(32, 2)


@pytest.mark.parametrize("victim", ["agent", "worker"])
async def test_an_engine_that_dies_meanwhile_is_found_dead(
    own_daemon: DaemonProcess, leader: Leader, victim: str
) -> None:
    daemon = own_daemon
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        fence = await a.begin()
        await a.worker.map(a.device, 8, 1)
        daemon.kill()
        await daemon.ended()
        dead, other = (a.agent, a.worker) if victim == "agent" else (a.worker, a.agent)
        dead.kill()
        await dead.ended()
        assert other.alive
        daemon.start()
        assert await other.ended() == SIGKILLED
        state = await leader.closed(a.device, fence)
        assert (state.owners, state.open) == ((), None)
        await b.restore(32, 2)


async def test_a_stopped_engine_is_reclaimed_after_the_daemon_came_back(
    own_daemon: DaemonProcess, leader: Leader
) -> None:
    """The new daemon has never heard from it, and proves its death all the same."""
    async with puppet_engine(own_daemon, leader) as a:
        await a.begin()
        await a.worker.map(a.device, 8, 1)
        a.agent.stop()
        a.worker.stop()
        await again(own_daemon, leader)
        fence = await leader.reclaim(a.spec)
        assert await a.worker.ended() == SIGKILLED
        assert await a.agent.ended() == SIGKILLED
        state = await leader.closed(a.device, fence)
        assert (state.owners, state.open) == ((), None)


async def test_a_process_that_only_said_hello_is_remembered(own_daemon: DaemonProcess, leader: Leader) -> None:
    """It holds nothing and has nothing open, yet it belongs to an engine that ends as one."""
    async with puppet_engine(own_daemon, leader) as a:
        await again(own_daemon, leader)
        a.worker.kill()
        assert await a.agent.ended() == SIGKILLED


async def test_stopping_in_order_leaves_engines_alone(own_daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(own_daemon, leader) as a:
        await a.restore(4, 7)
        assert await own_daemon.stop() == 0
        assert not own_daemon.socket.exists()
        assert await leader.device(a.device) is None
        assert set((await a.worker.fills()).values()) == {7}  # type: ignore[attr-defined]
        own_daemon.start()
        await own_daemon.ready(leader.store)
        await a.offload()


async def test_calls_wait_for_the_daemon_to_come_back(own_daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(own_daemon, leader) as a:
        fence = await a.begin()
        own_daemon.kill()
        await own_daemon.ended()
        a.worker.send("map", a.device, "weights", 2, 1)
        a.agent.send("enter", a.device, fence.epoch, fence.revision, 60.0)
        own_daemon.start()
        assert len(await a.worker.answer()) == 2  # type: ignore[arg-type]
        assert (await a.agent.answer())[1] == fence.revision  # type: ignore[index]
        await a.leave(fence)
        assert (await leader.closed(a.device, fence)).charged == 2 * CHUNK


async def refuses_to_start(daemon: DaemonProcess) -> str:
    """What it says when it ends by itself."""
    before = len(daemon.said())
    daemon.start()
    assert await daemon.ended() == 1
    return daemon.said()[before:]


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "of another node"])
async def test_a_damaged_ledger_is_refused(own_daemon: DaemonProcess, leader: Leader, damage: str) -> None:
    await own_daemon.stop()
    (ledger,) = own_daemon.state_dir.glob(f"ledger-{boot_id()}.*")
    whole = ledger.read_bytes()
    harmed = {
        "cut": whole[:-10],
        "flipped": whole.replace(b'"closed":0', b'"closed":9'),
        "emptied": b"",
        "of another node": whole,
    }[damage]
    ledger.write_bytes(harmed)
    if damage == "of another node":
        own_daemon.arguments[1] = "elsewhere"
    said = await refuses_to_start(own_daemon)
    assert str(ledger) in said
    assert ("give another --state-dir" if damage == "of another node" else "delete the file") in said


async def test_a_second_daemon_on_the_same_state_or_socket_is_refused(
    own_daemon: DaemonProcess, leader: Leader
) -> None:
    first = own_daemon.process
    assert "belongs to a running daemon" in await refuses_to_start(own_daemon)
    own_daemon.arguments[own_daemon.arguments.index("--state-dir") + 1] = str(own_daemon.state_dir) + "2"
    assert "another daemon listens" in await refuses_to_start(own_daemon)
    own_daemon.process = first
    async with puppet_engine(own_daemon, leader) as a:
        await a.restore(1, 1)


async def test_a_device_that_is_held_cannot_be_configured_away(own_daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(own_daemon, leader) as a:
        await a.restore(1, 1)
        await own_daemon.stop()
        own_daemon.devices = ("5:host:64MiB",)
        assert "not configured any more" in await refuses_to_start(own_daemon)


async def test_more_than_the_machine_has_is_refused_with_a_remedy(own_daemon: DaemonProcess) -> None:
    await own_daemon.stop()
    own_daemon.devices = ("0:cuda:64MiB",)
    assert "device 0" in await refuses_to_start(own_daemon)


async def test_a_stopped_daemon_that_resumes_publishes_again(own_daemon: DaemonProcess, leader: Leader) -> None:
    """Its own lease ended meanwhile: new lease, same content."""
    assert own_daemon.process is not None
    async with puppet_engine(own_daemon, leader) as a:
        last = await a.restore(3, 1)
        before = await leader.closed(a.device, last)
        own_daemon.process.send_signal(signal.SIGSTOP)
        await leader.store.revoke_lease(await lease_of(leader, a.device))
        assert await leader.device(a.device) is None
        own_daemon.process.send_signal(signal.SIGCONT)
        assert await leader.until(a.device, lambda state: True) == before


async def lease_of(leader: Leader, device: str) -> int:
    kv = await leader.store.get(keys.device(device))
    assert kv is not None
    return kv.lease
