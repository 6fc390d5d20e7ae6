"""Coordinators in the test's process, and as processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientSession

from coordinator.__main__ import settings
from coordinator.admin.app import Settings as AdminSettings
from coordinator.config import load
from coordinator.configured import scheduler as configured
from coordinator.core.scheduler import Scheduler
from coordinator.core.settings import Settings as ModelSettings
from coordinator.gateway.settings import Settings as GatewaySettings
from coordinator.reload import ConfigFile
from coordinator.runtime import Runtime, Settings
from coordinator.store.base import Store

EAGER = ModelSettings(keep_alive=None, min_residency=0.0, max_wait=60.0)


class Coordinator:
    """A running one, and a client of its gateway and admin API."""

    def __init__(self, runtime: Runtime, session: ClientSession) -> None:
        self.runtime = runtime
        self._session = session

    async def ask(self, model: str, **fields: Any) -> tuple[int, dict[str, Any]]:
        """(status, answer) of one completion."""
        body = {"model": model, "prompt": "hello", **fields}
        async with self._session.post(self.runtime.gateway_url + "/v1/completions", json=body) as answer:
            return answer.status, await answer.json()

    async def admin(self, method: str, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
        async with self._session.request(method, self.runtime.admin_url + path, **options) as answer:
            return answer.status, await answer.json()

    async def status(self, path: str, headers: dict[str, str]) -> int:
        """What the gateway answers."""
        async with self._session.get(self.runtime.gateway_url + path, headers=headers) as answer:
            return answer.status

    async def get(self, path: str) -> bytes:
        async with self._session.get(self.runtime.gateway_url + path) as answer:
            return await answer.read()


@asynccontextmanager
async def coordinator(
    store: Store,
    identifier: str = "c1",
    *,
    defaults: ModelSettings = EAGER,
    lease_ttl: int = 5,
    admin: AdminSettings | None = None,
    scheduler: Scheduler | None = None,
    **gateway: Any,
) -> AsyncIterator[Coordinator]:
    """A coordinator on free ports; `gateway` are settings of its gateway, by default
    with models a, b and c."""
    told = Settings(
        id=identifier,
        gateway=GatewaySettings(**{"port": 0, "drain_s": 5.0, "models": ("a", "b", "c"), **gateway}),
        admin=admin or AdminSettings(port=0),
        lease_ttl=lease_ttl,
    )
    async with _running(Runtime(told, store, scheduler or Scheduler(defaults))) as it:
        yield it


@asynccontextmanager
async def configured_coordinator(store: Store, file: Path) -> AsyncIterator[Coordinator]:
    """One that was started with this `vnpu.yaml` and can read it again."""
    config = load(file, {})
    runtime = Runtime(settings(config, "c1", {}), store, configured(config), file=ConfigFile(file, {}, config))
    async with _running(runtime) as it:
        yield it


@asynccontextmanager
async def _running(runtime: Runtime) -> AsyncIterator[Coordinator]:
    async with ClientSession() as session:
        stop = asyncio.Event()
        running = asyncio.ensure_future(runtime.run(stop))
        ready = asyncio.ensure_future(runtime.ready.wait())
        await asyncio.wait((running, ready), return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        try:
            if not running.done():
                yield Coordinator(runtime, session)
        finally:
            stop.set()
            await running


CONFIG = """
devices: [{{id: 0, driver: host, capacity: 1GiB}}]
gateway: {{listen: "127.0.0.1:0"}}
admin: {{listen: "127.0.0.1:0"}}
defaults: {{keep_alive: 1h, min_residency: 0s}}
models:
{models}
"""


def config_file(folder: Path, models: list[str]) -> Path:
    """A `vnpu.yaml` whose models are folders with a few sparse bytes."""
    lines = []
    for name in models:
        path = folder / name
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text("{}")
        (path / "model.safetensors").write_bytes(b"\0" * 1000)
        lines.append(f"  {name}: {{path: ./{name}, kv_cache: 1MiB}}")
    file = folder / "vnpu.yaml"
    file.write_text(CONFIG.format(models="\n".join(lines)))
    return file


class Process:
    """`python -m coordinator`, a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, identifier: str, log: Path) -> None:
        self.id = identifier
        self.log = log
        self._process = process

    def kill(self) -> None:
        self._process.kill()

    async def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        return await self._process.wait()

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def coordinator_process(config: Path, etcd: str, identifier: str) -> AsyncIterator[Process]:
    """Killed at the end of the block, if it has not ended before."""
    log = config.parent / f"{identifier}.log"
    with log.open("wb") as file:
        started = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "coordinator", "--config", str(config), "--etcd", etcd, "--id", identifier),
            stderr=file,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
    process = Process(started, identifier, log)
    try:
        yield process
    finally:
        await process.end()
