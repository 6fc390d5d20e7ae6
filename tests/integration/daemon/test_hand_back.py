"""What engines keep and a restarted daemon gets back: chunks, masters, and the account of host memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.core.model import HostRam
from tests.helpers.daemon import DaemonProcess
from tests.helpers.eventually import eventually
from tests.helpers.leader import Leader
from tests.helpers.puppet import PuppetRefused
from tests.helpers.puppet_engine import CHUNK, PuppetEngine, puppet_engine

MIB = 1 << 20
BUDGET = {"more": ("--host-ram", "16MiB"), "devices": ("0:host:8MiB",)}


async def again(daemon: DaemonProcess, leader: Leader) -> None:
    """kill -9 and start on the same state."""
    daemon.kill()
    await daemon.ended()
    daemon.start()
    await daemon.ready(leader.store)


async def facts(engine: PuppetEngine) -> dict[str, object]:
    told = await engine.worker.call("stats")
    assert isinstance(told, dict)
    return told


async def pool(engine: PuppetEngine) -> dict[str, int]:
    told = await facts(engine)
    return told["devices"]["0"]["pool"]  # type: ignore[index,no-any-return]


async def master(engine: PuppetEngine, digest: str, size: int = 2 * MIB) -> None:
    await engine.worker.call("create_master", size)
    await engine.worker.call("write_master", digest)
    await engine.worker.call("seal_master", digest)
    await engine.worker.call("keep_master", digest)


async def test_chunks_are_handed_back_and_go_on_to_others(own_daemon: DaemonProcess, leader: Leader) -> None:
    """The very chunks: nothing is made anew, on the way to the next owner."""
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "b") as b:
        await a.restore(30, 1)
        old = set(a.chunks)
        await again(own_daemon, leader)
        assert (await pool(a))["foreign"] == 0
        assert set((await a.worker.fills()).values()) == {1}  # type: ignore[attr-defined]
        await a.offload()
        await b.restore(32, 2)
        assert old < set(b.chunks)
        await again(own_daemon, leader)
        assert (await pool(b))["foreign"] == 0
        await b.offload()
        await a.restore(32, 1)
        assert old < set(a.chunks)


async def test_a_listening_process_hands_back_without_being_called(own_daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "b") as b:
        await a.restore(4, 1)
        await a.worker.call("listen", True)
        await again(own_daemon, leader)

        await own_daemon.until_said("4 chunks of")
        assert (await pool(b))["foreign"] == 0


async def test_what_is_not_handed_back_stays_charged_and_is_made_anew(
    own_daemon: DaemonProcess, leader: Leader
) -> None:
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "b") as b:
        await a.restore(30, 1)
        old = set(a.chunks)
        await again(own_daemon, leader)
        assert (await pool(b))["foreign"] == 30 * CHUNK
        a.worker.kill()
        await a.agent.ended()
        await b.restore(32, 2)
        assert not old & set(b.chunks)


@pytest.mark.parametrize("lie", ["another file", "another size", "another chunk"])
async def test_a_wrong_descriptor_is_refused_and_nothing_of_its_call_is_taken(
    own_daemon: DaemonProcess, leader: Leader, tmp_path: Path, lie: str
) -> None:
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "b") as b:
        await a.restore(4, 1)
        await b.restore(4, 2)
        if lie == "another chunk":
            await a.worker.call("swap_kept", a.device, *a.chunks[:2])
        else:
            size = CHUNK if lie == "another file" else CHUNK // 2
            await a.worker.call("keep_instead", a.device, a.chunks[0], str(tmp_path / "forged"), size)
        await again(own_daemon, leader)
        await facts(a)
        await facts(b)
        assert (await pool(a))["foreign"] == 4 * CHUNK
        await a.offload()
        await b.offload()
        await b.restore(32, 2)


async def test_nobody_hands_back_what_is_anothers(own_daemon: DaemonProcess, leader: Leader, tmp_path: Path) -> None:
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "b") as b:
        await a.restore(4, 1)
        await b.worker.call("keep_instead", a.device, a.chunks[0], str(tmp_path / "forged"), CHUNK)
        await b.worker.call("listen", True)
        await again(own_daemon, leader)
        await facts(b)
        assert (await pool(b))["foreign"] == 4 * CHUNK
        await facts(a)
        assert (await pool(a))["foreign"] == 0


@pytest.mark.parametrize("daemon_options", [BUDGET])
async def test_masters_outlive_the_daemon(own_daemon: DaemonProcess, leader: Leader) -> None:
    """And are shared with engines that had never seen them, out of the same pages."""
    device = own_daemon.ids[0]
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "b") as b:
        await master(a, "content", 6 * MIB)
        await b.worker.call("report_host", 3 * MIB)
        await a.worker.call("listen", True)
        wanted = HostRam(total=16 * MIB, masters=6 * MIB, saved_kv=3 * MIB)
        await leader.until(device, lambda state: state.host_ram == wanted)
        await again(own_daemon, leader)
        await leader.until(device, lambda state: state.host_ram == wanted)
        assert await b.worker.call("read_master", "content", 7) == "content"
        assert (await facts(b))["host_ram"] == {
            "total": 16 * MIB, "masters": 6 * MIB, "saved_kv": 3 * MIB, "unused": 0, "pinned": 6 * MIB, "missed": 0,
            "evicted": 0,
        }  # fmt: skip


@pytest.mark.parametrize("daemon_options", [BUDGET])
async def test_a_master_that_nobody_hands_back_is_charged_while_its_users_live(
    own_daemon: DaemonProcess, leader: Leader
) -> None:
    device = own_daemon.ids[0]
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "b") as b:
        await master(a, "content", 12 * MIB)
        await again(own_daemon, leader)
        await facts(b)
        with pytest.raises(PuppetRefused, match="no_space"):
            await b.worker.call("create_master", 6 * MIB)
        a.worker.kill()
        await leader.until(device, lambda state: state.host_ram.masters == 0)
        assert await b.worker.call("read_master", "content", 7) is None
        await b.worker.call("create_master", 6 * MIB)


async def test_a_master_that_was_changed_is_not_taken_back(own_daemon: DaemonProcess, leader: Leader) -> None:
    """Its maker could still write to it."""
    async with puppet_engine(own_daemon, leader, "a") as a, puppet_engine(own_daemon, leader, "b") as b:
        await a.worker.call("create_master", 2 * MIB)
        await a.worker.call("write_master", "content")
        await a.worker.call("seal_and_keep_writing", "digest")
        await a.worker.call("keep_master", "digest")
        own_daemon.kill()
        await own_daemon.ended()
        await a.worker.call("write_master", "CONTENT")
        own_daemon.start()
        await own_daemon.ready(leader.store)
        await facts(a)
        assert (await facts(b))["masters"] == {}


async def test_descriptors_beside_a_call_that_takes_none_are_closed(daemon: DaemonProcess, leader: Leader) -> None:
    async with puppet_engine(daemon, leader) as a:
        await a.restore(2, 1)
        await a.worker.call("hand_back_again", a.device)
        before = daemon.open_descriptors()
        for _ in range(3):
            await a.worker.call("hand_back_again", a.device)
        await eventually(lambda: daemon.open_descriptors() <= before + 1)  # the last connection may be about to end
        assert (await pool(a))["foreign"] == 0
