"""The node that `wake` measures: two real engines on a host device that holds only one of them."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import yaml
from rich.progress import Progress

from coordinator.demo.audit import Audit
from coordinator.demo.node import running_node
from coordinator.demo.scenario import ENGINE_ARGS
from coordinator.store import connect, prompt
from coordinator.supervise.layout import RunFile

SUBJECT = "large"
"""The model whose wake is measured: 1.04 GB of weights."""
OTHER = "medium"
SIZES = {SUBJECT: ("qwen3", "large"), OTHER: ("llama", "medium")}
CAPACITY = "1408MiB"
KV_CACHE = 64 << 20
"""Bytes, of each."""


def make_models(folder: Path, progress: Progress) -> None:
    """Make the models that are not there yet."""
    task = progress.add_task("models", total=len(SIZES))
    for name, (arch, size) in SIZES.items():
        command = [sys.executable, "-m", "coordinator.cli.main", "make-model", str(folder / name)]
        subprocess.run([*command, "--arch", arch, "--size", size], check=True, stdout=subprocess.DEVNULL)
        progress.advance(task)


def configuration(models: Path) -> dict[str, object]:
    return {
        "etcd": "embedded",
        "node": "bench",
        "devices": [{"id": 0, "driver": "host", "capacity": CAPACITY}],
        "gateway": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0"},
        "defaults": {"keep_alive": "1h", "min_residency": "200ms"},
        "models": {
            name: {"path": str((models / name).absolute()), "kv_cache": KV_CACHE, "engine_args": dict(ENGINE_ARGS)}
            for name in SIZES
        },
    }


@contextlib.asynccontextmanager
async def prepared_node(models: Path, run_dir: Path, progress: Progress) -> AsyncIterator[tuple[RunFile, Audit]]:
    """The node, up, with an audit that follows it; stopped when the block ends."""
    config = run_dir / "vnpu.yaml"
    config.write_text(yaml.safe_dump(configuration(models)))
    starting = progress.add_task("starting two engines", total=None)
    async with running_node(config, run_dir / "run") as node:
        found = await node.wait_ready()
        progress.remove_task(starting)
        prompt.all_prompt()  # who looks on must not be late: its clock times orders and answers
        store = connect(found.etcd)
        audit = Audit()
        following = asyncio.create_task(audit.follow(store))
        try:
            yield found, audit
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await store.close()
