"""The node daemon as a process of its own, for tests: started, killed, stopped, started again on the same state."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType

from coordinator.store import keys
from coordinator.store.base import Store
from coordinator.store.follow import follow
from native.link import read_stats

PATIENCE_S = 60.0
ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class DaemonProcess:
    """`devices` as on the command line, e.g. `0:host:64MiB`; `under`: a command that runs it, e.g. `unshare`. Its log
    is `folder/daemon.log`."""

    def __init__(
        self,
        folder: Path,
        etcd: str,
        *,
        node: str = "local",
        devices: Sequence[str] = ("0:host:64MiB",),
        more: Sequence[str] = (),
        descriptors: int | None = None,
        under: Sequence[str] = (),
    ) -> None:
        self.node = node
        self.socket = folder / "daemon.sock"
        self.state_dir = folder / "state"
        self.log = folder / "daemon.log"
        self.devices = tuple(devices)
        self.descriptors = descriptors
        self.under = tuple(under)
        self.arguments = [
            "--node", node, "--etcd", etcd, "--socket", str(self.socket), "--state-dir", str(self.state_dir), *more,
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DaemonProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self._terminate()
            self.process.wait(PATIENCE_S)

    @property
    def ids(self) -> list[str]:
        """Of its devices, as etcd names them."""
        return [f"{self.node}/{device.split(':')[0]}" for device in self.devices]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Returns at once: `ready` waits."""
        devices = [word for device in self.devices for word in ("--device", device)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.under, sys.executable, "-m", "native.daemon", *self.arguments, *devices],
                cwd=ROOT, stdin=subprocess.DEVNULL, stderr=log, stdout=log, preexec_fn=self._limit,
            )  # fmt: skip

    async def ready(self, store: Store) -> DaemonProcess:
        """Until its own keys stand in etcd, and not those of an earlier process."""
        assert self.process is not None
        pid = f'"pid":{self.pid},' if not self.under else '"pid":'
        wanted = {keys.daemon(self.node), *map(keys.device, self.ids)}
        async with asyncio.timeout(PATIENCE_S), aclosing(follow(store, f"{keys.ROOT}nodes/")) as news:
            async for _ in news:
                listing = await store.list(f"{keys.ROOT}nodes/")
                leases = {kv.lease for kv in listing.kvs if kv.key in wanted}
                ours = [kv for kv in listing.kvs if kv.key == keys.daemon(self.node)]
                mine = any(pid in kv.value.decode() for kv in ours)
                if mine and len(leases) == 1 and wanted <= {kv.key for kv in listing.kvs}:
                    return self
        raise AssertionError("the watch ended")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()

    async def ended(self) -> int:
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, PATIENCE_S)

    async def stop(self) -> int:
        """SIGTERM; the exit status."""
        self._terminate()
        return await self.ended()

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    async def until_said(self, words: str) -> None:
        """Until its log holds these words."""
        async with asyncio.timeout(PATIENCE_S):
            while words not in self.said():  # noqa: ASYNC110 (a file says nothing when it grows)
                await asyncio.sleep(0.05)

    async def until_sampled(self) -> None:
        """Until it has measured once more."""

        def samples() -> int:
            return int(json.loads(read_stats(str(self.socket)))["samples"])

        before = await asyncio.to_thread(samples)
        async with asyncio.timeout(PATIENCE_S):
            while await asyncio.to_thread(samples) == before:  # noqa: ASYNC110 (it says so only when asked)
                await asyncio.sleep(0.05)

    def open_descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def _terminate(self) -> None:
        """SIGTERM to the daemon itself: what it runs under may not pass it on."""
        pid = self.pid
        if self.under:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            pid = int(children[0]) if children else pid
        os.kill(pid, signal.SIGTERM)

    def _limit(self) -> None:
        """Runs between fork and exec. Where the test process is killed, its daemon goes too."""
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if self.descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.descriptors, self.descriptors))
