"""`vnpu up` as a process: real etcd, daemon, coordinator and supervisor, engines without vLLM (`light_engine`)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from coordinator.core.process import Life, Process
from coordinator.picture import Mirror, Picture
from coordinator.store import connect

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
DRIVER = """
import sys
from pathlib import Path
from rich.console import Console
from coordinator.cli.up import up
sys.exit(up(Path(sys.argv[1]), Path(sys.argv[2]), [], Console(), sys.argv[3]))
"""


class LightNode:
    """A running node, what stands in its etcd, and a client of its gateway and admin API."""

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

    async def admin(self, method: str, path: str) -> tuple[int, Any]:
        async with aiohttp.ClientSession() as http, http.request(method, self.run_file()["admin"] + path) as reply:
            return reply.status, await reply.json()

    async def said(self, words: str) -> None:
        """`vnpu up` prints them."""
        async with asyncio.timeout(PATIENCE_S):
            while words not in (self.folder / "up.log").read_text():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.05)


def model_folders(folder: Path, **sizes: int) -> None:
    """Folders with a few sparse bytes, for models of these names."""
    for name, size in sizes.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
        with (folder / name / "model.safetensors").open("wb") as file:
            file.truncate(size)


@asynccontextmanager
async def light_node(folder: Path, config: str) -> AsyncIterator[LightNode]:
    """A node of this configuration, up; ended in order at the end of the block."""
    (folder / "vnpu.yaml").write_text(textwrap.dedent(config))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/helpers/light_python.py "$@"\n')
    python.chmod(0o755)
    command = [sys.executable, "-c", DRIVER, *map(str, (folder / "vnpu.yaml", folder / "run", python))]
    with (folder / "up.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    node = LightNode(folder, process)
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
