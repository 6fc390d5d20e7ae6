"""A whole node whose engines are started when they are needed: real etcd, daemon, coordinator and supervisor, engines
without vLLM. Host memory holds one engine's process at a time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from coordinator.core.model import Decision, Life, Order, Process
from coordinator.picture import Mirror, Picture
from coordinator.store import connect
from tests.helpers.processes import alive

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
DRIVER = """
import sys
from pathlib import Path
from rich.console import Console
from coordinator.cli.up import up
sys.exit(up(Path(sys.argv[1]), Path(sys.argv[2]), [], Console(), sys.argv[3]))
"""


class LazyNode:
    """`vnpu up` as a process, what stands in its etcd, and a client of its gateway."""

    def __init__(self, folder: Path, process: asyncio.subprocess.Process) -> None:
        self.folder = folder
        self.process = process
        self.mirror: Mirror

    def run_file(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "run" / "run.json").read_text())
        return found

    async def up(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not (self.folder / "run" / "run.json").exists() or not self.run_file()["ready"]:
                assert self.process.returncode is None, (self.folder / "up.log").read_text()
                await asyncio.sleep(0.05)

    async def until(self, holds: Callable[[Picture], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.mirror.until(holds)

    def lives(self) -> dict[str, Life]:
        return {name.partition("/")[2]: p.life for name, p in self.mirror.picture.of(Process).items()}

    def pid(self, model: str) -> int:
        return next(int(part["pid"]) for part in self.run_file()["processes"] if part["name"] == model)

    async def ask(self, model: str) -> tuple[int, Any]:
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            body = {"model": model, "prompt": "x", "steps": 1}
            async with http.post(f"{self.run_file()['gateway']}/v1/completions", json=body) as reply:
                return reply.status, await reply.json()


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[LazyNode]:
    for name in ("a", "b", "huge"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        with (tmp_path / name / "model.safetensors").open("wb") as file:
            file.truncate((1 << 30) if name == "huge" else 6 << 20)
    (tmp_path / "vnpu.yaml").write_text(
        textwrap.dedent("""
            devices: [{id: 0, capacity: 2GiB}, {id: 1, capacity: 32MiB}]
            gateway: {listen: 127.0.0.1:0}
            admin: {listen: 127.0.0.1:0}
            host_ram: 1584MiB
            defaults: {min_residency: 100ms}
            models:
              a: {path: a, kv_cache: 1MiB, device: any, start: lazy}
              b: {path: b, kv_cache: 1MiB, device: 0, start: lazy, stop_after: 2s}
              huge: {path: huge, kv_cache: 1MiB, device: any, start: lazy}
        """)
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/helpers/light_python.py "$@"\n')
    python.chmod(0o755)
    command = [sys.executable, "-c", DRIVER, *map(str, (tmp_path / "vnpu.yaml", tmp_path / "run", python))]
    with (tmp_path / "up.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    node = LazyNode(tmp_path, process)
    try:
        await node.up()
        store = connect(node.run_file()["etcd"], environ={})
        node.mirror = Mirror(store)
        mirroring = asyncio.create_task(node.mirror.run())
        try:
            yield node
        finally:
            mirroring.cancel()
            await asyncio.wait((mirroring,))
            await store.close()
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            await process.wait()


@pytest.mark.timeout(300)
async def test_a_request_starts_its_engine_and_another_takes_its_memory(node: LazyNode) -> None:
    await node.until(lambda picture: len(picture.of(Process)) == 4)
    assert node.lives() == dict.fromkeys(("a@0", "a@1", "b", "huge"), Life.STOPPED)

    status, answer = await node.ask("a")
    assert status == 200, answer
    await node.until(lambda picture: node.lives()["a@0"] is Life.RUNNING)
    assert node.lives()["a@1"] is Life.STOPPED  # device 0 has more room
    first = node.pid("a@0")
    assert alive(first)

    status, other = await node.ask("b")
    assert status == 200, other
    assert node.lives()["a@0"] is Life.STOPPED
    assert not alive(first)
    causes = {d.order: d.cause for d in node.mirror.picture.of(Decision).values() if d.engine == "a@0"}
    assert causes[Order.CLOSE].startswith("host memory for b: requests for b have waited for")

    await node.until(lambda picture: node.lives()["b"] is Life.STOPPED)
    stopped = [d.cause for d in node.mirror.picture.of(Decision).values() if (d.order, d.engine) == (Order.STOP, "b")]
    assert stopped[0].endswith("stopped after 2 s")

    status, again = await node.ask("a")
    assert (status, again) == (200, answer)
    assert node.pid("a@0") not in (0, first)

    status, refused = await node.ask("huge")
    assert status == 503
    assert "huge needs 2.5 GiB of local's host memory, which has 1.55 GiB" in refused["error"]["message"]
