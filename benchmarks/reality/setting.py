"""The node that `reality` measures: three real engines on a host device that holds two of them; and the trace."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import yaml
from rich.progress import Progress

from coordinator.demo.audit import Audit
from coordinator.demo.node import running_node
from coordinator.demo.scenario import ENGINE_ARGS
from coordinator.simulate.trace import Request
from coordinator.store import connect
from coordinator.store.base import Store
from coordinator.supervise.layout import RunFile

KINDS = {"first": ("qwen3", "medium"), "second": ("llama", "medium"), "third": ("qwen2", "medium")}
"""Of 0.55 GB each."""
WEIGHED = (5, 3, 2)
"""How often each is asked for."""
CAPACITY = 1408 << 20
KV = 64 << 20
MIN_RESIDENCY_S = 1.0
KEEP_ALIVE_S = 3600.0
GAP_S = 2.5
"""Between requests, on average."""
TOKENS = 8
JUDGED, BEFORE, AFTER = 4, 5, 6
"""Seeds of the trace, and of those in which it is practised."""


def trace(seconds: float, seed: int) -> list[Request]:
    """Arrivals at random, the same for a seed. What a prompt takes is measured in practice."""
    draw, at, found = random.Random(seed), 0.0, []
    while (at := at + draw.expovariate(1 / GAP_S)) < seconds:
        (model,) = draw.choices(list(KINDS), WEIGHED)
        found.append(Request(t=at, model=model, prompt_tokens=0, output_tokens=TOKENS))
    return found


def make_models(folder: Path, progress: Progress) -> None:
    """Make the models that are not there yet."""
    task = progress.add_task("models", total=len(KINDS))
    for arch, size in KINDS.values():
        command = [sys.executable, "-m", "coordinator.cli.main", "make-model", str(folder / f"{arch}-{size}")]
        subprocess.run([*command, "--arch", arch, "--size", size], check=True, stdout=subprocess.DEVNULL)
        progress.advance(task)


def path(models: Path, name: str) -> Path:
    return models / "-".join(KINDS[name])


def configuration(models: Path) -> dict[str, object]:
    args = dict(ENGINE_ARGS)
    return {
        "etcd": "embedded",
        "node": "bench",
        "devices": [{"id": 0, "driver": "host", "capacity": f"{CAPACITY >> 20}MiB"}],
        "gateway": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0"},
        "defaults": {"keep_alive": f"{KEEP_ALIVE_S:g}s", "min_residency": f"{MIN_RESIDENCY_S:g}s"},
        "models": {
            name: {"path": str(path(models, name).absolute()), "kv_cache": f"{KV >> 20}MiB", "engine_args": args}
            for name in KINDS
        },
    }


@contextlib.asynccontextmanager
async def prepared_node(models: Path, run_dir: Path, progress: Progress) -> AsyncIterator[tuple[RunFile, Audit, Store]]:
    """The node, up, with an audit that follows it; stopped when the block ends."""
    config = run_dir / "vnpu.yaml"
    config.write_text(yaml.safe_dump(configuration(models)))
    starting = progress.add_task("starting three engines", total=None)
    async with running_node(config, run_dir / "run") as node:
        found = await node.wait_ready()
        progress.remove_task(starting)
        store = connect(found.etcd)
        audit = Audit()
        following = asyncio.create_task(audit.follow(store))
        try:
            yield found, audit, store
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await store.close()
