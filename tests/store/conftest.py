"""Every contract test runs on the store in memory, on etcd 3.5 and, marked `system`, on Debian's etcd 3.4."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from coordinator.store.base import Store
from coordinator.store.memory import MemoryEtcd, MemoryStore
from tests.helpers.etcd import RealEtcd, etcd34_binary, running_etcd

_numbers = itertools.count()


class MemoryServer:
    """`MemoryEtcd` with the knobs of `RealEtcd`."""

    def __init__(self) -> None:
        self.etcd = MemoryEtcd()

    def client(self, *, call_timeout: float = 5.0, stall: float = 5.0) -> MemoryStore:
        return self.etcd.client(timeout=call_timeout)

    async def start(self) -> None:
        self.etcd.start()

    async def kill(self) -> None:
        self.etcd.stop()

    def pause(self) -> None:
        self.etcd.stop()

    def resume(self) -> None:
        self.etcd.start()

    async def compact(self, revision: int) -> None:
        self.etcd.compact(revision)

    async def watchers(self) -> int:
        return self.etcd.watchers


Server = MemoryServer | RealEtcd


@pytest.fixture(scope="session")
def etcd35(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEtcd]:
    with running_etcd(tmp_path_factory.mktemp("etcd35")) as etcd:
        yield etcd


@pytest.fixture(scope="session")
def etcd34(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEtcd]:
    with running_etcd(tmp_path_factory.mktemp("etcd34"), binary=etcd34_binary()) as etcd:
        yield etcd


@pytest.fixture(params=["etcd35", pytest.param("etcd34", marks=pytest.mark.system)])
def real(request: pytest.FixtureRequest) -> RealEtcd:
    """Each real etcd in turn."""
    etcd: RealEtcd = request.getfixturevalue(request.param)
    return etcd


@pytest.fixture(params=["memory", "etcd35", pytest.param("etcd34", marks=pytest.mark.system)])
def server(request: pytest.FixtureRequest) -> Server:
    if request.param == "memory":
        return MemoryServer()
    etcd: RealEtcd = request.getfixturevalue(request.param)
    return etcd


@pytest.fixture
async def store(server: Server) -> AsyncIterator[Store]:
    client = server.client(stall=30.0)
    yield client
    await client.close()


@pytest.fixture
def prefix() -> str:
    """Of this test alone."""
    return f"/test/{next(_numbers)}/"
