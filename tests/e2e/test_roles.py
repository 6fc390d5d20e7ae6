"""A model behind a prefill group of two ranks and a decode group of one, on a node that `vnpu up` runs: the gateway
carries the ticket, both groups sleep and wake, and a dead prefill engine costs time only. One node for all."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio
import yaml

from coordinator.demo.node import Node, start
from coordinator.supervise.layout import RunFile
from tests.helpers.engine_file import made, marks

pytestmark = marks()

PATIENCE_S = 300.0
CHAT, PREFILL = "chat", "chat@prefill"
PROMPT = "the harbour at night, " * 12 + "and then"
ENGINE_ARGS = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 4, "block_size": 32, "enforce_eager": True}


class Running:
    def __init__(self, node: Node, found: RunFile, http: aiohttp.ClientSession) -> None:
        self.node = node
        self.found = found
        self._http = http
        self._turn = 0
        self.urls = {process.name: process.url for process in found.processes}
        self.alone: list[int] = []

    async def complete(self, url: str = "") -> list[int]:
        """Greedy tokens of a request that finds nothing in a prefix cache; `url`: an engine's own, past the gateway."""
        self._turn += 1
        body = {"model": CHAT, "prompt": PROMPT, "max_tokens": 16, "temperature": 0.0, "cache_salt": f"{self._turn}"}
        body |= {"ignore_eos": True, "return_token_ids": True}
        async with self._http.post(f"{url or self.found.gateway}/v1/completions", json=body) as reply:
            answer = await reply.json()
            assert reply.status == 200, answer
        ids: list[int] = answer["choices"][0]["token_ids"]
        return ids

    def pulled(self) -> int:
        """Pulls of which every block has come. (vLLM's own counter counts what was promised.)"""
        log = self.node.run_dir.log(CHAT).read_text()
        return sum(came == all_ for came, all_ in re.findall(r"kv pull of \S+: (\d+) of (\d+) blocks came", log))

    def mapped(self) -> int:
        """How often a prefill rank's pages were mapped by the decode engine: all are on one node."""
        return self.node.run_dir.log(CHAT).read_text().count("are mapped here")

    async def sleep(self, model: str) -> None:
        async with self._http.post(f"{self.found.admin}/v1/models/{model}/sleep") as reply:
            assert reply.status == 202, await reply.text()
        await self.until(model, "offloaded")

    async def until(self, model: str, phase: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while (await self._phases())[model] != phase:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.2)

    async def _phases(self) -> dict[str, str]:
        async with self._http.get(f"{self.found.admin}/v1/engines") as reply:
            return {engine["model"]: engine["phase"] for engine in (await reply.json())["engines"]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("roles")
    config = folder / "vnpu.yaml"
    config.write_text(yaml.safe_dump(configuration(folder / "model")))
    await made(folder / "model", "qwen3")
    node = start(config, folder / "run")
    try:
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            yield Running(node, await node.wait_ready(), http)
    finally:
        await node.stop()


def configuration(model: Path) -> dict[str, Any]:
    return {
        "etcd": "embedded",
        "devices": [{"id": number, "driver": "host", "capacity": "160MiB"} for number in (0, 1)],
        "gateway": {"listen": "127.0.0.1:0", "max_wait": f"{PATIENCE_S:g}s"},
        "admin": {"listen": "127.0.0.1:0"},
        "models": {
            CHAT: {
                "path": str(model),
                "kv_cache": "32MiB",
                "keep_alive": None,
                "restart": "never",
                "engine_args": ENGINE_ARGS,
                "roles": {"prefill": {"device": [0, 1]}, "decode": {"device": 0}},
            }
        },
    }


async def test_prompts_are_computed_by_one_group_and_answered_by_the_other(running: Running) -> None:
    running.alone = await running.complete(running.urls[CHAT])
    assert len(set(running.alone)) > 2
    before = running.pulled()
    assert before == 0
    assert await running.complete() == running.alone
    assert running.pulled() > before
    assert running.mapped() == 2
    assert await running.complete() == running.alone
    assert running.mapped() == 2


async def test_both_groups_wake_for_a_request(running: Running) -> None:
    for turn in range(2):
        for model in (CHAT, PREFILL):
            await running.sleep(model)
        before, mapped = running.pulled(), running.mapped()
        assert await running.complete() == running.alone
        assert running.pulled() > before, turn
        assert running.mapped() == mapped + 2, turn


async def test_a_dead_prefill_engine_costs_time_only(running: Running) -> None:
    """Last: nobody starts it again. What was mapped of it is let go of, or the daemon would kill the decode engine."""
    server = psutil.Process(next(one.pid for one in running.node.run_dir.read().processes if one.name == PREFILL))
    family = [server, *server.children(recursive=True)]
    asking = asyncio.create_task(running.complete())
    server.kill()
    assert await asking == running.alone
    await asyncio.to_thread(psutil.wait_procs, family, PATIENCE_S)
    before = running.pulled()
    assert await running.complete() == running.alone
    assert running.pulled() == before
