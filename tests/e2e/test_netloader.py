"""`vnpu up` with a tensor-parallel engine, and others of the same checkpoint that start later and find its weights
by themselves: on the same node, two ranks to two ranks; one whose kernels lay them out differently, which gets the
checkpoint from them; one whose sources break off in mid-stream, which disk makes whole; and, over TCP and while the
first one serves requests, one on another node with its own daemon. One node for the whole file: five engine starts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import yaml

from coordinator.cli.make_model import Recipe, make_model
from coordinator.core.model import Daemon, Residency, Seed, Spec
from coordinator.demo.node import Node, own_environment, start
from coordinator.picture import Mirror
from coordinator.store import connect
from coordinator.store.floor import development
from coordinator.supervise.layout import RunFile
from tests.helpers.eventually import eventually
from tests.helpers.proxy import Proxy

pytestmark = [pytest.mark.engine, pytest.mark.system, pytest.mark.timeout(1800)]

PATIENCE_S = 600.0
STOP_S = 90.0
FIRST, SECOND, THIRD, FAR, BROKEN = "first", "second", "third", "far", "broken"
RATE = 8_000_000
"""Bytes a second that each rank of the first engine serves while it has requests: ten seconds for its 80 MB."""
PROMPT = "the harbour at night"
ENGINE_ARGS = {"dtype": "bfloat16", "max_model_len": 512, "max_num_seqs": 4, "block_size": 32, "enforce_eager": True}
VNPU = [sys.executable, "-m", "coordinator.cli.main"]


def model(folder: Path, **more: Any) -> dict[str, Any]:
    return {"path": str(folder / "model"), "kv_cache": "32MiB", "device": [0, 1], "engine_args": ENGINE_ARGS, **more}


def node_of(name: str, capacities: tuple[str, ...], models: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "node": name,
        "devices": [{"id": device, "capacity": capacity} for device, capacity in enumerate(capacities)],
        "gateway": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0"},
        "models": models,
        **more,
    }


def configuration(folder: Path) -> dict[str, Any]:
    limited = {"load_format": "vnpu_netloader", "model_loader_extra_config": {"LOAD_FROM": "disk", "RATE_LIMIT": RATE}}
    # Another type of numbers and another parallel size: nothing of the others' memory is of use to the third.
    wider = {**ENGINE_ARGS, "dtype": "float32"}
    models = {
        FIRST: model(folder, engine_args={**ENGINE_ARGS, **limited}),
        SECOND: model(folder, load_from="peers"),
        THIRD: model(folder, load_from="peers", device=2, engine_args=wider),
    }
    return node_of("here", ("384MiB", "384MiB", "1GiB"), models)


class Running(NamedTuple):
    """The first node, and what its engine answers."""

    folder: Path
    config: Path
    node: Node
    found: RunFile
    tokens: list[int]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("netloader")
    config = folder / "vnpu.yaml"
    config.write_text(yaml.safe_dump(configuration(folder)))
    make_model(folder / "model", Recipe(arch="qwen3", size="small"), as_json=True)
    node = start(config, folder / "run", "--without", SECOND, "--without", THIRD)
    try:
        found = asyncio.run(node.wait_ready())
        tokens = asyncio.run(complete(found, FIRST))
        assert len(set(tokens)) > 2
        yield Running(folder, config, node, found, tokens)
    finally:
        asyncio.run(node.stop())


@asynccontextmanager
async def watching(found: RunFile) -> AsyncIterator[Mirror]:
    store = connect(found.etcd, environ={})
    mirror = Mirror(store)
    following = asyncio.create_task(mirror.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield mirror
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await store.close()


@asynccontextmanager
async def by_hand(config: Path, run_dir: Path, *words: str) -> AsyncIterator[Path]:
    """A process from the line that `vnpu` prints for it; its log."""
    show = [*VNPU, *words, "--config", str(config), "--run-dir", str(run_dir), "--print"]
    line = (await asyncio.to_thread(subprocess.run, show, check=True, capture_output=True, text=True)).stdout
    log = run_dir / f"{words[-1]}.by-hand.log"
    beside = {**own_environment(os.environ), **development({})}  # of the first node's own etcd
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", f"exec {line}", env=beside, stdout=file, stderr=file
        )
    try:
        yield log
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:  # where the test has failed in mid-start
            process.kill()
            await process.wait()


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


async def test_two_ranks_stream_to_two_ranks(running: Running):
    found, run = running.found, running.folder / "run"
    async with watching(found) as mirror, by_hand(running.config, run, "engine", SECOND) as log:
        await mirror.until(lambda picture: SECOND in picture.of(Residency))
        assert await complete(found, SECOND) == running.tokens
        specs = mirror.picture.of(Spec)
        assert same_bits(specs[FIRST], specs[SECOND])
        assert log.read_text().count("bytes streamed in") == 2
        # On one node the weights are mapped, by each rank its own.
        assert len(re.findall("memory of first at .* is mapped", log.read_text())) == 2
        assert await complete(found, FIRST) == running.tokens
        # Both ranks of both engines serve; rank n of one is rank n of the other. Each tells it in its own time.
        await mirror.until(lambda picture: len(picture.of(Seed)) >= 4)
        seeds = mirror.picture.of(Seed)
        ranks = {name.rpartition("/")[2]: seed.rank for name, seed in seeds.items() if seed.whole}
        assert sorted(ranks.values()) == [0, 1]
        assert len(seeds) == 4
        async with by_hand(running.config, run, "engine", THIRD) as log:
            await mirror.until(lambda picture: THIRD in picture.of(Residency))
            assert len(set(await complete(found, THIRD))) > 2
            assert "bytes of checkpoint streamed in" in log.read_text()


def same_bits(one: Spec, other: Spec) -> bool:
    """SHA-256 of all weights as they lie in device pages, of each rank."""
    return len(set(one.digest.split(","))) == len(one.devices) and one.digest == other.digest


async def test_sources_that_break_off_leave_nothing_that_disk_would_mind(running: Running):
    """The model was built and a part of its weights had come, three times over, when the last source was given up."""
    found, run = running.found, running.folder / "run"
    async with watching(found) as mirror, AsyncExitStack() as stack:
        await mirror.until(lambda picture: sum(seed.whole for seed in picture.of(Seed).values()) >= 2)
        addresses = {}
        for name, seed in mirror.picture.of(Seed).items():
            if name.startswith(f"{FIRST}/"):
                proxy = await stack.enter_async_context(Proxy(seed.port))
                proxy.most = 5 << 20
                addresses[seed.rank] = f"127.0.0.1:{proxy.port}"
        sources = [{"device_id": rank, "sources": [one]} for rank, one in addresses.items()]
        extra = {"load_format": "vnpu_netloader", "model_loader_extra_config": {"SOURCE": sources}}
        broken = {BROKEN: model(running.folder, engine_args={**ENGINE_ARGS, **extra})}
        config = running.folder / "broken.yaml"
        config.write_text(yaml.safe_dump(node_of("here", ("384MiB", "384MiB", "1GiB"), broken)))
        log = await stack.enter_async_context(by_hand(config, run, "engine", BROKEN))
        await mirror.until(lambda picture: BROKEN in picture.of(Residency))
        assert await complete(found, BROKEN) == running.tokens
        specs = mirror.picture.of(Spec)
        assert same_bits(specs[FIRST], specs[BROKEN])
        text = log.read_text()
        assert text.count("weights do not come as kernels use them: no source is left") == 2
        assert text.count("weights do not come as a checkpoint: no source is left") == 2
        assert text.count("weights come from disk: ") == 2


# ---- another node


@asynccontextmanager
async def vnpu_watch(found: RunFile) -> AsyncIterator[asyncio.Queue[dict[str, Any]]]:
    """What `vnpu-watch` shows of the stream to the other node, as it changes."""
    command = [sys.executable, "-m", "coordinator.cli.watch", "--json", "--etcd", ",".join(found.etcd)]
    shown: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    pipe = asyncio.subprocess.PIPE
    watch = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=1 << 22)

    async def read() -> None:
        assert watch.stdout is not None
        async for line in watch.stdout:
            for row in json.loads(line)["models"]:
                if row["model"] == FAR and row["stream"] is not None:
                    shown.put_nowait(row["stream"])

    reading = asyncio.create_task(read())
    try:
        yield shown
    finally:
        watch.kill()
        await watch.wait()
        await reading


async def keep_asking(running: Running) -> None:
    """One request after the other, while its weights are streamed: each answered as before."""
    while True:
        assert await complete(running.found, FIRST) == running.tokens


async def test_another_node_takes_its_weights_over_tcp(running: Running):
    """Two daemons, one etcd, and nothing but the key was copied."""
    there, found = running.folder / "there", running.found
    (there / "daemon").mkdir(mode=0o700, parents=True)
    shutil.copy(running.folder / "run/transfer.key", there)  # with its mode
    config = running.folder / "there.yaml"
    far = model(running.folder, load_from="peers")
    config.write_text(yaml.safe_dump(node_of("there", ("384MiB",) * 2, {FAR: far}, etcd=list(found.etcd))))
    async with watching(found) as mirror, by_hand(config, there, "daemon"), vnpu_watch(found) as shown:
        await mirror.until(lambda picture: "there" in picture.of(Daemon))
        async with by_hand(config, there, "engine", FAR) as log:
            # Its workers are about to load: earlier, requests would only hold up its start.
            await eventually(lambda: "Registered model loader" in log.read_text(), patience_s=PATIENCE_S)
            asking = [asyncio.create_task(keep_asking(running)) for _ in range(2)]
            while not 0 < (seen := await shown.get())["have"] < seen["total"]:
                pass
            await mirror.until(lambda picture: FAR in picture.of(Residency))
            for one in asking:
                one.cancel()
            await asyncio.wait(asking)
            assert all(one.cancelled() for one in asking)
            assert seen["source"].startswith(FIRST)
            assert await complete(found, FAR) == running.tokens
            text = log.read_text()
            assert text.count("bytes streamed in") == 2
            assert "mapped" not in text
