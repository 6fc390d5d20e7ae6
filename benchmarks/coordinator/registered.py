"""Engines that stand in a real etcd and nothing else of them: for the memory of a real coordinator's process."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import aiohttp
import yaml

from coordinator.core.model import Bytes, Coordinator, Device, Epoch, Holder, Load, Phase, Residency, Spec, Value
from coordinator.embedded import EmbeddedEtcd, find_binary
from coordinator.store import connect, keys
from coordinator.store.base import Put, Store
from coordinator.store.codec import decode, encode
from coordinator.store.etcd import EtcdStore
from coordinator.store.floor import development

TTL_S = 3600
"""Nobody renews these leases."""
PER_DEVICE = 10
AT_ONCE = 32
LIMIT_S = 60.0
EPOCH = "benchmark"
GB = 10**9


async def rss_mb(engines: int, settle_s: float) -> float:
    """Resident megabytes (10^6) of a leading coordinator that knows `engines` engines, `settle_s` after it has seen
    the last of them."""
    with tempfile.TemporaryDirectory(prefix="vnpu-registered-") as name:
        folder = Path(name)
        etcd = EmbeddedEtcd(folder / "etcd", folder / "etcd.log", binary=find_binary({}))
        await etcd.start()
        store = connect([etcd.url], environ={})
        try:
            await register(store, engines)
            return await _measured(folder, etcd.url, store, engines, settle_s)
        finally:
            await store.close()
            await etcd.stop()


async def register(store: Store, engines: int) -> None:
    """So many engines, ten on each device, all asleep."""
    await store.txn([], [Put(keys.EPOCH, encode(Epoch(id=EPOCH)))])
    lease = await store.grant_lease(TTL_S)
    for number in range(-(-engines // PER_DEVICE)):
        state = Device(driver="host", capacity=40 * GB, chunk=16 << 20, epoch=EPOCH)
        await store.txn([], [Put(keys.device(f"n/{number}"), encode(state), lease)])
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with places:
            await _engine(store, number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(engines):
            tasks.create_task(one(number))


async def _engine(store: Store, number: int) -> None:
    """Spec, residency and load on a lease of its own, as an engine that sleeps."""
    name = f"m{number}"
    holder = Holder(name, f"{number:016x}")
    lease = await store.grant_lease(TTL_S)
    said: dict[str, Value] = {
        keys.spec(name): Spec(
            holder=holder,
            model=name,
            url=f"http://127.0.0.1:{10000 + number}",
            devices=(f"n/{number // PER_DEVICE}",),
            pid=1000 + number,
            boot_id="00000000-0000-0000-0000-000000000000",
            footprint=Bytes(weights=16 * GB, kv=GB),
            measured=True,
            cold_start=60.0,
            digest="sha256-tree:" + "0" * 64,
            versions={"vllm": "0.0.0", "vnpu": "0.0.0"},
        ),
        keys.residency(name): Residency(holder=holder, phase=Phase.OFFLOADED),
        keys.load(name): Load(),
    }
    await store.txn([], [Put(key, encode(value), lease) for key, value in said.items()])


async def _measured(folder: Path, etcd: str, store: EtcdStore, engines: int, settle_s: float) -> float:
    """Of a coordinator started now."""
    config = _configuration(folder)
    command = (sys.executable, "-m", "coordinator", "--config", str(config), "--etcd", etcd, "--id", "c1")
    with (folder / "coordinator.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, stderr=log, env={**os.environ, **development(os.environ), "VNPU_LOG_LEVEL": "warning"}
        )
    try:
        async with asyncio.timeout(LIMIT_S):
            while await _known(store) != engines:  # noqa: ASYNC110 (it says so only when asked)
                await asyncio.sleep(0.1)
        await asyncio.sleep(settle_s)
        return _resident(process.pid) / 1e6
    finally:
        process.kill()
        await process.wait()


async def _known(store: Store) -> int:
    """Engines that the leading coordinator knows."""
    kv = await store.get(keys.coordinator("c1"))
    known = decode(Coordinator, kv.value) if kv is not None else None
    if known is None or not known.leading:
        return -1
    async with aiohttp.ClientSession() as http, http.get(f"{known.admin_url}/v1/engines") as answer:
        return len((await answer.json())["engines"])


def _configuration(folder: Path) -> Path:
    (folder / "one").mkdir()
    (folder / "one" / "config.json").write_text("{}")
    (folder / "one" / "model.safetensors").write_bytes(b"\0" * 1000)
    told = {
        "devices": [{"id": 0, "driver": "host", "capacity": "1GiB"}],
        "gateway": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0"},
        "models": {"one": {"path": "./one", "kv_cache": "1MiB"}},
    }
    file = folder / "vnpu.yaml"
    file.write_text(yaml.safe_dump(told))
    return file


def _resident(pid: int) -> int:
    """Bytes, from /proc."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
