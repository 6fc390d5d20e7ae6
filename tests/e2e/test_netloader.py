"""`vnpu up` with a tensor-parallel engine, and a second one of the same checkpoint that is started later and finds its
weights by itself: two ranks to two ranks; and a third whose kernels lay them out differently, which gets the checkpoint
from them. Three engine starts."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from coordinator.cli.make_model import Recipe, make_model
from coordinator.core.model import Residency, Seed
from coordinator.demo.node import own_environment, start
from coordinator.picture import Mirror
from coordinator.store import connect
from coordinator.supervise.layout import RunFile

pytestmark = [pytest.mark.engine, pytest.mark.system, pytest.mark.timeout(1800)]

PATIENCE_S = 600.0
FIRST, SECOND, THIRD = "first", "second", "third"
PROMPT = "the harbour at night"
ENGINE_ARGS = {"dtype": "bfloat16", "max_model_len": 512, "max_num_seqs": 4, "block_size": 32, "enforce_eager": True}
VNPU = [sys.executable, "-m", "coordinator.cli.main"]


def configuration(folder: Path) -> dict[str, Any]:
    model = {"path": str(folder / "model"), "kv_cache": "32MiB", "device": [0, 1], "engine_args": dict(ENGINE_ARGS)}
    # Another type of numbers and another parallel size: nothing of the others' memory is of use to it.
    wider = {**ENGINE_ARGS, "dtype": "float32"}
    other = {**model, "device": 2, "engine_args": wider, "load_from": "peers"}
    return {
        "node": "e2e",
        "devices": [
            {"id": device, "capacity": capacity} for device, capacity in enumerate(("384MiB",) * 2 + ("1GiB",))
        ],
        "gateway": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0"},
        "models": {FIRST: model, SECOND: {**model, "load_from": "peers"}, THIRD: other},
    }


@asynccontextmanager
async def by_hand(name: str, config: Path, run_dir: Path) -> AsyncIterator[Path]:
    """An engine from the line that is printed for it; its log."""
    show = [*VNPU, "engine", name, "--config", str(config), "--run-dir", str(run_dir), "--print"]
    line = (await asyncio.to_thread(subprocess.run, show, check=True, capture_output=True, text=True)).stdout
    log = run_dir / f"{name}.by-hand.log"
    with log.open("wb") as file:
        engine = await asyncio.create_subprocess_exec(
            "bash", "-c", f"exec {line}", env=own_environment(os.environ), stdout=file, stderr=file
        )
    try:
        yield log
    finally:
        if engine.returncode is None:
            engine.terminate()
            await engine.wait()


async def complete(found: RunFile, model: str) -> list[int]:
    body = {"model": model, "prompt": PROMPT, "max_tokens": 24, "temperature": 0.0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        http.post(f"{found.gateway}/v1/completions", json=body) as reply,
    ):
        answer = await reply.json()
        assert reply.status == 200, answer
    ids: list[int] = answer["choices"][0]["token_ids"]
    return ids


async def test_two_ranks_stream_to_two_ranks(tmp_path: Path):
    config = tmp_path / "vnpu.yaml"
    config.write_text(yaml.safe_dump(configuration(tmp_path)))
    await asyncio.to_thread(make_model, tmp_path / "model", Recipe(arch="qwen3", size="small"), as_json=True)
    node = start(config, tmp_path / "run", "--without", SECOND, "--without", THIRD)
    try:
        found = await node.wait_ready()
        tokens = await complete(found, FIRST)
        assert len(set(tokens)) > 2
        store = connect(found.etcd, environ={})
        mirror = Mirror(store)
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(mirror.run())
            async with asyncio.timeout(PATIENCE_S), by_hand(SECOND, config, tmp_path / "run") as log:
                await mirror.until(lambda picture: SECOND in picture.of(Residency))
                assert await complete(found, SECOND) == tokens
                assert log.read_text().count("bytes streamed in") == 2
                # On one node the weights are mapped, by each rank its own.
                assert len(re.findall("memory of first at .* is mapped", log.read_text())) == 2
                assert await complete(found, FIRST) == tokens
                # Both ranks of both engines serve; rank n of one is rank n of the other.
                seeds = mirror.picture.of(Seed)
                ranks = {name.rpartition("/")[2]: seed.rank for name, seed in seeds.items() if seed.whole}
                assert sorted(ranks.values()) == [0, 1]
                assert len(seeds) == 4
                async with by_hand(THIRD, config, tmp_path / "run") as log:
                    await mirror.until(lambda picture: THIRD in picture.of(Residency))
                    assert len(set(await complete(found, THIRD))) > 2
                    assert "bytes of checkpoint streamed in" in log.read_text()
            watching.cancel()
        await store.close()
    finally:
        await node.stop()
