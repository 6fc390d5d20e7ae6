"""The node that `handover` measures: etcd, daemon, coordinators and engines, each a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import yaml

from benchmarks.handover.engine import LIMIT_S, Stamps, start
from coordinator.core.model import Coordinator, Phase
from coordinator.demo.audit import Audit
from coordinator.embedded import EmbeddedEtcd, find_binary
from coordinator.errors import SchemaError
from coordinator.store import connect, keys
from coordinator.store.codec import decode
from coordinator.store.etcd import EtcdStore
from coordinator.store.floor import development
from coordinator.store.session import TTL_S
from tests.helpers.daemon import DaemonProcess
from tests.helpers.light_engine import LightEngine

FIRST, SECOND = "first", "second"
"""Two engines on a device that holds one of them. `FIRST` does not leave for others, `SECOND` leaves at once."""
MUTE = (sys.executable, "-m", "benchmarks.handover.mute")
DEVICE = "bench/0"
CAPACITY = "64MiB"
WEIGHTS = 40 << 20


def configuration() -> dict[str, object]:
    def model(name: str, min_residency: str) -> dict[str, object]:
        return {"path": f"./{name}", "kv_cache": "1MiB", "min_residency": min_residency}

    return {
        "node": "bench",
        "devices": [{"id": 0, "driver": "host", "capacity": CAPACITY}],
        "gateway": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0"},
        "defaults": {"keep_alive": "10h"},
        "models": {FIRST: model(FIRST, "10h"), SECOND: model(SECOND, "0s")},
    }


def write_configuration(folder: Path) -> Path:
    """With model folders that hold next to nothing: no coordinator opens them."""
    for name in (FIRST, SECOND):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
        (folder / name / "model.safetensors").write_bytes(b"\0" * 1000)
    file = folder / "vnpu.yaml"
    file.write_text(yaml.safe_dump(configuration()))
    return file


class Member:
    """A coordinator's process, and where it listens."""

    def __init__(self, process: asyncio.subprocess.Process, known: Coordinator) -> None:
        self._process = process
        self.known = known

    @property
    def pid(self) -> int:
        return self._process.pid

    async def kill(self) -> None:
        """SIGKILL; nothing where it has ended."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


class Setting:
    """Made by `running`. `ttl`: seconds, of every lease."""

    ttl = TTL_S

    def __init__(self, folder: Path, etcd: str, store: EtcdStore, audit: Audit) -> None:
        self.folder = folder
        self.etcd = etcd
        self.store = store
        self.audit = audit
        self.http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT_S))
        self.engines: dict[str, LightEngine] = {}
        self.stamps: dict[str, Stamps] = {}
        self.members: list[Member] = []
        self._config = write_configuration(folder)
        self._started = 0

    # ---- coordinators

    async def coordinator(self) -> Member:
        """One more; listed, so ready to lead or to follow."""
        self._started += 1
        name = f"c{self._started}"
        with (self.folder / f"{name}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "coordinator", "--config", str(self._config), "--etcd", self.etcd),
                *("--id", name),
                stderr=log,
                env={**os.environ, "VNPU_LOG_LEVEL": os.environ.get("VNPU_LOG_LEVEL", "warning")},
            )
        async with asyncio.timeout(LIMIT_S):
            while (known := await self._known(name)) is None:  # noqa: ASYNC110 (before anything is measured)
                await asyncio.sleep(0.05)
        member = Member(process, known)
        self.members.append(member)
        return member

    async def leader(self) -> Member:
        async with asyncio.timeout(LIMIT_S):
            while True:
                for member in self.members:
                    known = await self._known(member.known.id)
                    if known is not None and known.leading:
                        return member
                await asyncio.sleep(0.05)

    async def standby(self) -> Member:
        leader = await self.leader()
        return next(member for member in self.members if member is not leader)

    async def _known(self, name: str) -> Coordinator | None:
        kv = await self.store.get(keys.coordinator(name))
        with contextlib.suppress(SchemaError):
            return decode(Coordinator, kv.value) if kv is not None else None
        return None

    async def retire(self, member: Member) -> None:
        await member.kill()
        self.members.remove(member)

    # ---- engines

    async def engine(self, name: str) -> None:
        """Started, and started up by the leader."""
        self.audit.history.pop(name, None)
        self.engines[name], self.stamps[name] = await start(self.folder, self.etcd, name, size=WEIGHTS, ttl=self.ttl)
        await self.phase(name, Phase.RESIDENT)
        await self.audit.until(lambda: self.audit.specs[name].measured, LIMIT_S, f"{name} measured")

    async def lose(self, name: str) -> None:
        """kill -9, if it still lives."""
        engine = self.engines.pop(name)
        async with engine:
            pass

    async def phase(self, name: str, phase: Phase) -> None:
        await self.audit.until(lambda: self.audit.phase(name) is phase, LIMIT_S, f"{name} {phase.value}")

    async def ask(self, member: Member, name: str) -> None:
        """One request through a coordinator's gateway. Raises `ClientResponseError` where it is not served."""
        body = {"model": name, "prompt": "a", "steps": 1}
        async with self.http.post(f"{member.known.gateway_url}/v1/completions", json=body) as answer:
            answer.raise_for_status()
            await answer.read()

    async def sleep(self, name: str) -> None:
        """By the operator's order; returns when its pages are free and everybody has had time to hear so. First the
        word of a gateway elsewhere that somebody waits has to be gone, or the model is woken again at once."""
        leader = await self.leader()
        async with asyncio.timeout(LIMIT_S):
            while (await self.store.list(f"{keys.ROOT}demand/")).kvs:  # noqa: ASYNC110 (it is short)
                await asyncio.sleep(0.02)
        if self.audit.phase(name) is not Phase.OFFLOADED:
            async with self.http.post(f"{leader.known.admin_url}/v1/models/{name}/sleep") as answer:
                answer.raise_for_status()
        await self.phase(name, Phase.OFFLOADED)
        await self.audit.until(lambda: not self._charged(name), LIMIT_S, f"{DEVICE} free of {name}")
        await asyncio.sleep(0.05)

    def _charged(self, name: str) -> bool:
        return any(holder.engine == name for holder in self.audit.owners(DEVICE))

    async def close(self) -> None:
        for member in self.members:
            await member.kill()
        for name in tuple(self.engines):
            await self.lose(name)
        await self.http.close()


@contextlib.asynccontextmanager
async def running(folder: Path, *, mute: bool = False, coordinators: int = 1) -> AsyncIterator[Setting]:
    """Etcd, the daemon (`mute`: it leaves leases to expire) and `coordinators`; no engine yet. All gone at the end."""
    etcd = EmbeddedEtcd(folder / "etcd", folder / "etcd.log", binary=find_binary({}))
    await etcd.start()
    os.environ.update(development(os.environ))
    store = connect([etcd.url], environ={})
    audit = Audit()
    following = asyncio.create_task(audit.follow(store))
    setting = Setting(folder, etcd.url, store, audit)
    try:
        more = ("--lease-ttl", str(setting.ttl))
        devices = (f"0:host:{CAPACITY}",)
        under = MUTE if mute else ()
        with DaemonProcess(folder, etcd.url, node="bench", devices=devices, more=more, under=under) as daemon:
            try:
                await daemon.ready(store)
                for _ in range(coordinators):
                    await setting.coordinator()
                await setting.leader()
                yield setting
            finally:
                await setting.close()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await store.close()
        await etcd.stop()
