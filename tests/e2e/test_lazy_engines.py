"""Two real vLLM engines that run only when they are asked for, on a node whose host memory holds one process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import yaml

from coordinator.core.process import Life, Process
from coordinator.demo.node import running_node
from coordinator.picture import Mirror
from coordinator.store import connect
from tests.helpers.engine_file import made

pytestmark = [pytest.mark.engine, pytest.mark.system, pytest.mark.timeout(1200)]

PATIENCE_S = 600.0
MODELS = {"first": "qwen3", "second": "llama"}
ENGINE_ARGS = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 4, "block_size": 32, "enforce_eager": True}


def configuration(models: Path) -> dict[str, Any]:
    lazy = {"kv_cache": "32MiB", "start": "lazy", "engine_args": dict(ENGINE_ARGS)}
    return {
        "devices": [{"id": 0, "capacity": "256MiB"}],
        "host_ram": "2GiB",
        "gateway": {"listen": "127.0.0.1:0", "max_wait": f"{PATIENCE_S:g}s"},
        "admin": {"listen": "127.0.0.1:0"},
        "models": {name: {"path": str(models / name), **lazy} for name in MODELS},
    }


async def answer(gateway: str, model: str) -> list[int]:
    """Greedy tokens, whether the model has a process or not."""
    body = {"model": model, "prompt": "the harbour at night", "max_tokens": 16, "temperature": 0.0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        http.post(f"{gateway}/v1/completions", json=body) as reply,
    ):
        told = await reply.json()
        assert reply.status == 200, told
    ids: list[int] = told["choices"][0]["token_ids"]
    return ids


async def test_each_is_started_by_its_request_and_stopped_for_the_others(tmp_path: Path) -> None:
    config = tmp_path / "vnpu.yaml"
    config.write_text(yaml.safe_dump(configuration(tmp_path / "models")))
    for name, arch in MODELS.items():
        await made(tmp_path / "models" / name, arch)
    async with running_node(config, tmp_path / "run") as node:
        run = await node.wait_ready()
        store = connect(run.etcd, environ={})
        mirror = Mirror(store)
        mirroring = asyncio.create_task(mirror.run())
        try:
            assert {process.pid for process in run.processes if process.kind == "engine"} == {0}
            before = await answer(run.gateway, "first")
            assert len(set(before)) > 2
            await mirror.until(lambda picture: life(mirror, "first") is Life.RUNNING)
            measured = mirror.picture.of(Process)["local/first"]
            assert measured.measured
            pid = next(process.pid for process in node.run_dir.read().processes if process.name == "first")
            family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            assert await answer(run.gateway, "second")
            assert life(mirror, "first") is Life.STOPPED
            _, left = await asyncio.to_thread(psutil.wait_procs, family, PATIENCE_S)
            assert left == []
            assert await answer(run.gateway, "first") == before
        finally:
            mirroring.cancel()
            await asyncio.wait((mirroring,))
            await store.close()


def life(mirror: Mirror, engine: str) -> Life:
    return mirror.picture.of(Process)[f"local/{engine}"].life
