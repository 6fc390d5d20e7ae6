"""Machines that lack what the daemon would like to have: it says so and serves, or it says so and what to do."""

from __future__ import annotations

import json

import pytest

from native.link import read_stats
from tests.helpers.daemon import DaemonProcess
from tests.helpers.leader import Leader
from tests.helpers.puppet_engine import CHUNK, puppet_engine


def shell(*lines: str) -> tuple[str, ...]:
    """Run before the daemon, in whose place it comes."""
    return ("sh", "-c", " && ".join([*lines, 'exec "$@"']), "sh")


NO_NAMESPACES = ("unshare", "--user", "--map-root-user", *shell("echo 0 > /proc/sys/user/max_user_namespaces"))
OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")
TINY_SHM = (*OWN_MOUNTS, *shell("mount -t tmpfs -o size=4k tmpfs /dev/shm"))


async def serves(daemon: DaemonProcess, leader: Leader) -> None:
    """Two engines take turns on the whole device, over a restart, and one of them is killed."""
    async with puppet_engine(daemon, leader, "a") as a, puppet_engine(daemon, leader, "b") as b:
        await a.restore(32, 1)
        await a.offload()
        await b.restore(32, 2)
        b.worker.kill()
        await b.agent.ended()
        await a.restore(32, 1)
        assert set((await a.worker.fills()).values()) == {1}  # type: ignore[attr-defined]
        assert (await leader.closed(a.device)).charged == 32 * CHUNK


def backing(daemon: DaemonProcess) -> str:
    told = json.loads(read_stats(str(daemon.socket)))
    return str(told["devices"]["0"]["backing"])


@pytest.mark.parametrize("daemon_options", [{"under": NO_NAMESPACES}])
async def test_without_user_namespaces_it_takes_small_pages_and_says_so(
    own_daemon: DaemonProcess, leader: Leader
) -> None:
    assert backing(own_daemon) == "memfd"
    assert "no huge pages (memfd): copies are slow" in own_daemon.said()
    await serves(own_daemon, leader)


@pytest.mark.parametrize("daemon_options", [{"under": TINY_SHM}])
async def test_a_tiny_dev_shm_does_not_matter(own_daemon: DaemonProcess, leader: Leader) -> None:
    await serves(own_daemon, leader)


async def test_a_folder_without_huge_pages_is_used_and_said(own_daemon: DaemonProcess, leader: Leader) -> None:
    await restarted_on(own_daemon, "size=128m,huge=never")
    await own_daemon.ready(leader.store)
    assert backing(own_daemon) == "tmpfs"
    assert "no huge pages (tmpfs): copies are slow" in own_daemon.said()
    await serves(own_daemon, leader)


async def test_a_folder_that_is_too_small_is_refused_with_what_it_holds(own_daemon: DaemonProcess) -> None:
    await restarted_on(own_daemon, "size=16m")
    assert await own_daemon.ended() == 1
    assert "16 of 64 MiB could be populated" in own_daemon.said()
    assert "lower its capacity or free memory" in own_daemon.said()


async def restarted_on(daemon: DaemonProcess, options: str) -> None:
    await daemon.stop()
    folder = daemon.state_dir.parent / "pages"
    daemon.under = (*OWN_MOUNTS, *shell(f"mkdir {folder}", f"mount -t tmpfs -o {options} tmpfs {folder}"))
    daemon.arguments += ["--pages", str(folder)]
    daemon.start()
