"""A real etcd for all, a daemon process and an elected leader for each test, on a node name of its own."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from coordinator.store.base import Store
from tests.helpers.daemon import DaemonProcess
from tests.helpers.etcd import RealEtcd, running_etcd
from tests.helpers.leader import Leader

_nodes = itertools.count(1)


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEtcd]:
    with running_etcd(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[RealEtcd]:
    """For tests that do harm to etcd."""
    with running_etcd(tmp_path / "own") as etcd:
        yield etcd


@pytest.fixture
def etcd(request: pytest.FixtureRequest) -> RealEtcd:
    """The shared one, unless the test uses `own_etcd`."""
    name = "own_etcd" if "own_etcd" in request.fixturenames else "shared_etcd"
    found: RealEtcd = request.getfixturevalue(name)
    return found


@pytest.fixture
async def store(etcd: RealEtcd) -> AsyncIterator[Store]:
    client = etcd.client()
    yield client
    await client.close()


@pytest.fixture
async def leader(store: Store) -> Leader:
    leader = Leader(store)
    await leader.elect()
    return leader


@pytest.fixture(scope="session")
def shared_daemon(shared_etcd: RealEtcd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    folder = tmp_path_factory.mktemp("daemon")
    with DaemonProcess(folder, shared_etcd.url, node="shared", devices=("0:host:64MiB", "1:host:32MiB")) as daemon:
        yield daemon


@pytest.fixture
async def daemon(shared_daemon: DaemonProcess, leader: Leader) -> AsyncIterator[DaemonProcess]:
    """Shared, with two devices, ready and empty: an engine of an earlier test ends with it, and its pages come back.
    What the daemon said meanwhile is shown where the test fails."""
    await shared_daemon.ready(leader.store)
    for device in shared_daemon.ids:
        await leader.until(device, lambda state: state.open is None and not state.owners)
    before = len(shared_daemon.said())
    yield shared_daemon
    print(shared_daemon.said()[before:])  # noqa: T201


@pytest.fixture
def daemon_options() -> dict[str, object]:
    """Parametrize it to start `own_daemon` otherwise."""
    return {}


@pytest.fixture
async def own_daemon(
    etcd: RealEtcd, store: Store, tmp_path: Path, daemon_options: dict[str, object]
) -> AsyncIterator[DaemonProcess]:
    """One for this test, ready: to be killed, stopped and started again."""
    process = DaemonProcess(tmp_path, etcd.url, node=f"n{next(_nodes)}", **daemon_options)  # type: ignore[arg-type]
    try:
        with process:
            yield await process.ready(store)
    finally:
        print(process.said())  # noqa: T201
