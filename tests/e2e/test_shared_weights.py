"""Two models of one path on a device that holds one and a half of them: once each has shown that it leaves its weights
alone, both are resident in the same pages. Two engine starts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from coordinator.core.model import Device, Phase, Residency, Spec
from coordinator.demo.node import start
from coordinator.picture import Mirror, Picture
from coordinator.store import connect
from coordinator.supervise.layout import RunFile
from coordinator.weights import weight_bytes
from tests.e2e.test_netloader import ENGINE_ARGS, PATIENCE_S, complete
from tests.helpers.engine_file import made

pytestmark = [pytest.mark.engine, pytest.mark.system, pytest.mark.timeout(1800)]

FIRST, SECOND = "first", "second"
KV = 16 << 20
TURNS = 3
"""A model is asked, leaves for the other and comes back: then its pages are offered."""


def configuration(folder: Path, capacity: int) -> dict[str, Any]:
    model = {"path": str(folder / "model"), "kv_cache": KV, "device": 0, "engine_args": dict(ENGINE_ARGS)}
    return {
        "node": "e2e",
        "devices": [{"id": 0, "driver": "host", "capacity": capacity}],
        "gateway": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0"},
        "models": {FIRST: model, SECOND: model},
    }


def both_are_in(picture: Picture) -> bool:
    phases = {name: told.phase for name, told in picture.of(Residency).items()}
    return all(phases.get(name) is Phase.RESIDENT for name in (FIRST, SECOND))


def owners_of_weights(picture: Picture) -> set[str]:
    (device,) = picture.of(Device).values()
    assert device.charged <= device.capacity
    return {owner.holder.engine for owner in device.owners if owner.bytes.weights}


@asynccontextmanager
async def watched(folder: Path, configured: dict[str, Any]) -> AsyncIterator[tuple[RunFile, Mirror]]:
    """A node that is ready, and what its etcd shows; a time limit holds within."""
    config = folder / "vnpu.yaml"
    config.write_text(yaml.safe_dump(configured))
    node = start(config, folder / "run")
    try:
        found = await node.wait_ready()
        store = connect(found.etcd, environ={})
        mirror = Mirror(store)
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(mirror.run())
            async with asyncio.timeout(PATIENCE_S):
                yield found, mirror
            watching.cancel()
        await store.close()
    finally:
        await node.stop()


async def test_two_engines_of_one_path_lie_in_the_same_pages(tmp_path: Path) -> None:
    await made(tmp_path / "model", "qwen3", "small")
    capacity = (weight_bytes(tmp_path / "model") + KV) * 3 // 2
    async with watched(tmp_path, configuration(tmp_path, capacity)) as (found, mirror):
        tokens = await complete(found, FIRST)
        assert len(set(tokens)) > 2
        for name in (SECOND, FIRST) * TURNS:
            assert await complete(found, name) == tokens
        await mirror.until(lambda picture: both_are_in(picture) and len(owners_of_weights(picture)) == 1)
        specs = {spec.holder.engine: spec for spec in mirror.picture.of(Spec).values()}
        assert len({spec.digest for spec in specs.values()}) == 1
        assert sum(spec.footprint.total for spec in specs.values()) > capacity
        (owner,) = owners_of_weights(mirror.picture)
        (other,) = {FIRST, SECOND} - {owner}
        os.kill(specs[owner].pid, signal.SIGKILL)
        await mirror.until(lambda picture: owners_of_weights(picture) == {other})
        assert await complete(found, other) == tokens
