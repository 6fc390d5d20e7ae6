"""Host masters: written once, sealed, shared read-only, within the node's budget."""

from __future__ import annotations

import pytest

from coordinator.core.model import HostRam
from tests.helpers.daemon import DaemonProcess
from tests.helpers.leader import Leader
from tests.helpers.puppet import PuppetRefused
from tests.helpers.puppet_engine import puppet_engine

MIB = 1 << 20
BUDGET = {"more": ("--host-ram", "16MiB"), "devices": ("0:host:8MiB",)}


async def host_ram(leader: Leader, device: str, wanted: HostRam) -> None:
    await leader.until(device, lambda state: state.host_ram == wanted)


async def test_a_master_is_shared_by_its_content_and_read_only(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        digest = f"digest-{a.spec.holder.nonce}"
        assert await b.worker.call("read_master", digest, 5) is None
        assert await a.worker.call("create_master", 3 * MIB) == 4 * MIB
        await a.worker.call("write_master", "hello")
        assert await b.worker.call("read_master", digest, 5) is None
        await a.worker.call("seal_master", digest)
        assert await a.worker.call("read_master", digest, 5) == "hello"
        assert await b.worker.call("read_master", digest, 5) == "hello"


async def test_the_same_content_twice_is_kept_once(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        digest = f"digest-{a.spec.holder.nonce}"
        for engine, text in ((a, "first"), (b, "again")):
            await engine.worker.call("create_master", 2 * MIB)
            await engine.worker.call("write_master", text)
        for engine in (a, b):
            await engine.worker.call("seal_master", digest)
        assert await b.worker.call("read_master", digest, 5) == "first"


async def test_what_is_not_sealed_goes_with_its_connection(own_daemon: DaemonProcess, leader: Leader) -> None:
    device = own_daemon.ids[0]
    async with puppet_engine(own_daemon, leader) as a:
        await a.worker.call("create_master", 2 * MIB)
        await host_ram(leader, device, HostRam(masters=2 * MIB))
        await a.worker.call("create_master", 4 * MIB)
        await host_ram(leader, device, HostRam(masters=4 * MIB))
        await a.worker.call("reconnect")
        await host_ram(leader, device, HostRam())
        with pytest.raises(PuppetRefused, match="not_found"):
            await a.worker.call("seal_master", "d")


@pytest.mark.parametrize("daemon_options", [BUDGET])
async def test_the_budget_holds_for_masters_and_saved_kv(own_daemon: DaemonProcess, leader: Leader) -> None:
    device = own_daemon.ids[0]
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "b") as b:
        await a.worker.call("report_host", 10 * MIB)
        with pytest.raises(PuppetRefused, match="no_space"):
            await b.worker.call("create_master", 8 * MIB)
        await b.worker.call("create_master", 6 * MIB)
        with pytest.raises(PuppetRefused, match="no_space"):
            await a.worker.call("report_host", 11 * MIB)
        await host_ram(leader, device, HostRam(total=16 * MIB, masters=6 * MIB, saved_kv=10 * MIB))
        await a.worker.call("report_host", 1 * MIB)
        await host_ram(leader, device, HostRam(total=16 * MIB, masters=6 * MIB, saved_kv=1 * MIB))
        a.worker.kill()
        await host_ram(leader, device, HostRam(total=16 * MIB, masters=6 * MIB))


@pytest.mark.parametrize("daemon_options", [BUDGET])
async def test_under_pressure_the_least_recently_used_that_nobody_needs_goes(
    own_daemon: DaemonProcess, leader: Leader
) -> None:
    async with puppet_engine(own_daemon, leader, "b") as b:
        async with puppet_engine(own_daemon, leader, "a") as a:
            for digest in ("old", "older", "kept"):
                await a.worker.call("create_master", 4 * MIB)
                await a.worker.call("write_master", digest)
                await a.worker.call("seal_master", digest)
            await a.worker.call("read_master", "old", 3)
            await b.worker.call("read_master", "kept", 4)
            with pytest.raises(PuppetRefused, match="no_space"):
                await b.worker.call("create_master", 6 * MIB)
            a.worker.kill()
            await a.agent.ended()
        await b.worker.call("create_master", 6 * MIB)
        assert await b.worker.call("read_master", "older", 5) is None
        assert await b.worker.call("read_master", "old", 3) == "old"
        assert await b.worker.call("read_master", "kept", 4) == "kept"
