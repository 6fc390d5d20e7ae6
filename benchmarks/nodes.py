"""A node of real engines for a benchmark: its models made, its configuration written, `vnpu up` run and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.progress import Progress

from coordinator.demo.audit import Audit
from coordinator.demo.node import running_node
from coordinator.picture import Mirror
from coordinator.store import connect
from coordinator.store.base import Store
from coordinator.supervise.layout import RunFile

VNPU = (sys.executable, "-m", "coordinator.cli.main")
CONFIG, RUN = "vnpu.yaml", "run"
"""Of a node, in the folder it was given."""


def make_model(folder: Path, arch: str, size: str) -> Path:
    """Of random weights, in `folder`, where it is not there yet. Returns it, absolute."""
    command = [*VNPU, "make-model", str(folder), "--arch", arch, "--size", size]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder.absolute()


def make_models(models: Path, kinds: Mapping[str, tuple[str, str]], progress: Progress) -> None:
    """Of each name the architecture and the size, in a folder of that name."""
    task = progress.add_task("models", total=len(kinds))
    for name, (arch, size) in kinds.items():
        make_model(models / name, arch, size)
        progress.advance(task)


def configuration(models: Mapping[str, object], *capacities: str, **defaults: object) -> dict[str, object]:
    """What `vnpu.yaml` says: a host device for each capacity, any free ports, these models. Without prediction: a
    restore that nobody asked for must not lie in what is measured."""
    return {
        "etcd": "embedded",
        "node": "bench",
        "devices": [{"id": i, "driver": "host", "capacity": capacity} for i, capacity in enumerate(capacities)],
        "gateway": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0"},
        "policy": {"predict": False},
        "defaults": defaults,
        "models": dict(models),
    }


@contextlib.asynccontextmanager
async def running(tree: Mapping[str, object], folder: Path, *arguments: str) -> AsyncIterator[RunFile]:
    """A node of this configuration in `folder`, once all its engines are up; `arguments` are `vnpu up`'s. Raises
    NodeFailed."""
    async with running_node(written(tree, folder), folder / RUN, *arguments) as node:
        yield await node.wait_ready()


def written(tree: Mapping[str, object], folder: Path) -> Path:
    """The configuration's file in `folder`, which may be new."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / CONFIG
    config.write_text(yaml.safe_dump(dict(tree)))
    return config


def urls(found: RunFile) -> dict[str, str]:
    """Of each engine its own port, not the gateway's."""
    return {process.name: process.url for process in found.processes if process.kind == "engine"}


@contextlib.asynccontextmanager
async def audited(found: RunFile) -> AsyncIterator[tuple[Audit, Store]]:
    """An audit that follows the node, and the client that it uses."""
    audit = Audit()
    async with _store(found) as store, _meanwhile(audit.follow(store)):
        yield audit, store


@contextlib.asynccontextmanager
async def mirrored(found: RunFile) -> AsyncIterator[Mirror]:
    """What the node's keys say now."""
    async with _store(found) as store:
        mirror = Mirror(store)
        async with _meanwhile(mirror.run()):
            yield mirror


@contextlib.asynccontextmanager
async def _store(found: RunFile) -> AsyncIterator[Store]:
    store = connect(found.etcd, environ={})
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """`work` never ends by itself."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
