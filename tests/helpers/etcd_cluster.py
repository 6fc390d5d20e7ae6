"""Three etcd members on loopback, one cluster: started together, killed one by one."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from coordinator.embedded import find_binary
from coordinator.errors import StoreError
from coordinator.store import connect
from coordinator.store.etcd import EtcdStore
from coordinator.supervise.ports import free_port

PATIENCE_S = 60.0
MEMBERS = ("m0", "m1", "m2")


class EtcdCluster:
    """`url` names all members, as on a command line."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._clients = {name: f"http://127.0.0.1:{free_port()}" for name in MEMBERS}
        self._peers = {name: f"http://127.0.0.1:{free_port()}" for name in MEMBERS}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        return ",".join(self._clients.values())

    def client(self) -> EtcdStore:
        return connect(list(self._clients.values()), environ={})

    def start(self, *names: str) -> None:
        """All of them, or those named."""
        for name in names or MEMBERS:
            with (self._folder / f"{name}.log").open("ab") as log:
                self._processes[name] = subprocess.Popen(self._command(name), stdout=log, stderr=log)

    def kill(self, name: str) -> None:
        self._processes[name].kill()
        self._processes[name].wait()

    def stop(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()

    async def healthy(self, name: str) -> None:
        """Until this member answers with what a majority knows."""
        store = connect([self._clients[name]], environ={})
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        await store.get("/")
                        return
                    except StoreError:
                        await asyncio.sleep(0.1)
        finally:
            await store.close()

    def _command(self, name: str) -> list[str]:
        members = ",".join(f"{each}={peer}" for each, peer in self._peers.items())
        return [
            str(find_binary({})),
            f"--name={name}",
            f"--data-dir={self._folder / name}",
            f"--listen-client-urls={self._clients[name]}",
            f"--advertise-client-urls={self._clients[name]}",
            f"--listen-peer-urls={self._peers[name]}",
            f"--initial-advertise-peer-urls={self._peers[name]}",
            f"--initial-cluster={members}",
            "--unsafe-no-fsync",
        ]


@asynccontextmanager
async def etcd_cluster(folder: Path) -> AsyncIterator[EtcdCluster]:
    cluster = EtcdCluster(folder)
    cluster.start()
    try:
        for name in MEMBERS:
            await cluster.healthy(name)
        yield cluster
    finally:
        cluster.stop()
