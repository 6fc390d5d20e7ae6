"""Engines in other PID namespaces than the daemon, as containers have it: a pid says nothing, a pidfd
proves death. Killing across unrelated namespaces is not possible: there the daemon belongs into the host's."""

from __future__ import annotations

import pytest

from tests.helpers.daemon import DaemonProcess
from tests.helpers.leader import Leader
from tests.helpers.puppet import PuppetRefused
from tests.helpers.puppet_engine import CHUNK, puppet_engine

UNSHARED = {"under": ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGTERM")}

pytestmark = [pytest.mark.system, pytest.mark.parametrize("daemon_options", [UNSHARED])]


async def test_a_killed_engine_gives_its_pages_back(own_daemon: DaemonProcess, leader: Leader) -> None:
    """What is left of it is out of the daemon's reach: it is said, its pages stay charged, nothing else is harmed."""
    async with puppet_engine(own_daemon, leader, "a", workers=2) as a, puppet_engine(own_daemon, leader, "b") as b:
        fence = await a.begin()
        await a.workers[0].map(a.device, 16, 1)
        await a.workers[1].map(a.device, 4, 1)
        a.workers[0].kill()
        await leader.until(a.device, lambda state: state.charged == 4 * CHUNK)
        await own_daemon.until_said("run the daemon in the host's PID namespace")
        with pytest.raises(PuppetRefused, match="forbidden"):
            await a.workers[1].map(a.device, 1, 1)
        a.workers[1].kill()
        a.agent.kill()
        assert (await leader.closed(a.device, fence)).owners == ()
        await b.restore(32, 2)


async def test_a_reclaim_waits_for_whoever_can_end_it(own_daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(own_daemon, leader) as a:
        await a.restore(20, 1)
        a.agent.stop()
        a.worker.stop()
        fence = await leader.reclaim(a.spec)
        await own_daemon.until_said("run the daemon in the host's PID namespace")
        state = await leader.device(a.device)
        assert state is not None
        assert (state.closed < fence.revision, state.charged) == (True, 20 * CHUNK)
        a.agent.kill()
        a.worker.kill()
        assert (await leader.closed(a.device, fence)).owners == ()


async def test_over_a_restart_it_is_told_by_its_hello(own_daemon: DaemonProcess, leader: Leader) -> None:
    """Nobody can prove it dead until then, so its pages stay charged."""
    async with puppet_engine(own_daemon, leader) as a:
        await a.restore(20, 1)
        await own_daemon.stop()
        own_daemon.start()
        await own_daemon.ready(leader.store)
        (owner,) = (await leader.closed(a.device)).owners
        assert owner.bytes.total == 20 * CHUNK
        await a.worker.call("reconnect")
        await a.agent.call("reconnect")
        await a.offload()
        await a.restore(4, 1)
        a.worker.kill()
        await leader.until(a.device, lambda state: not state.owners)
