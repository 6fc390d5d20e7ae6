"""`async_runner: true` and `false`: two engines of one model that `vnpu up` runs, asked the same, answer the same.

Float32, because only there a token does not depend on what else is in its batch. Each engine has 40 KV blocks and
steps of 96 tokens, so that mixes preempt one another and prompts come in chunks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml

from coordinator.demo.node import Node, running_node
from coordinator.supervise.layout import RunFile
from tests.helpers.engine_file import made
from tests.helpers.request_mixes import CHOICES, LIMIT_S, Answer, Ask, mix, run

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800), pytest.mark.asyncio(loop_scope="module")]

ASYNC, SYNC = "async", "sync"
BLOCK, BLOCKS = 32, 40
TOKEN_BYTES = 4 * 2 * 2 * 32 * 4
"""Layers, K and V, KV heads, width, float32: of KV, for a token of the tiny model."""
ARGS = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 8, "block_size": BLOCK, "enforce_eager": True}
MIXES = 30


class Pair:
    def __init__(self, node: Node, found: RunFile) -> None:
        self.gateway = found.gateway
        self.admin = found.admin
        self.urls = {one.name: one.url for one in found.processes if one.kind == "engine"}
        self._logs = node.run_dir.root / "logs"

    def log(self, model: str) -> str:
        return (self._logs / f"{model}.log").read_text()

    async def switch(self, model: str) -> None:
        """It leaves, whatever it does, and comes back."""
        before = self.switches(model)
        await self._order(model, "sleep")
        async with asyncio.timeout(LIMIT_S):
            while self.switches(model) == before:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        await self._order(model, "wake")

    def switches(self, model: str) -> int:
        """How often it has left, as its agent says."""
        return self.log(model).count("] offloaded ")

    async def _order(self, model: str, order: str) -> None:
        async with aiohttp.ClientSession() as http, http.post(f"{self.admin}/v1/models/{model}/{order}") as reply:
            assert reply.status == 202, await reply.text()

    async def metric(self, model: str, name: str) -> float:
        async with aiohttp.ClientSession() as http, http.get(f"{self.urls[model]}/metrics") as reply:
            lines = (await reply.text()).splitlines()
        return sum(float(line.rsplit(maxsplit=1)[1]) for line in lines if line.startswith(name))

    async def same(self, seeds: range) -> None:
        """Each mix is answered alike by both."""
        for seed in seeds:
            asks = mix(seed)
            theirs, ours = [await run(self.urls[model], model, asks) for model in (SYNC, ASYNC)]
            for number, (ask, expected, found) in enumerate(zip(asks, theirs, ours, strict=True)):
                alike(f"mix {seed}, request {number}: {ask}", expected, found)


def alike(what: str, expected: Answer, found: Answer) -> None:
    """Where a client hung up, on what both have: events come with one token or several."""
    length = len(expected.tokens)
    if not (expected.finish and found.finish):
        length = min(length, len(found.tokens))
    else:
        assert (len(found.tokens), found.finish) == (length, expected.finish), what
    assert found.tokens[:length] == expected.tokens[:length], what
    assert found.logprobs[:length] == pytest.approx(expected.logprobs[:length], abs=1e-4), what


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    folder = tmp_path_factory.mktemp("async")
    model = await made(folder / "model", "qwen3")
    config = folder / "vnpu.yaml"
    config.write_text(yaml.safe_dump(configuration(model)))
    async with running_node(config, folder / "run") as node:
        yield Pair(node, await node.wait_ready())


def configuration(model: Path) -> dict[str, Any]:
    args = {**ARGS, "max_num_batched_tokens": 96}
    one = {"path": str(model), "kv_cache": BLOCKS * BLOCK * TOKEN_BYTES, "engine_args": args}
    return {
        "etcd": "embedded",
        "node": "e2e",
        "devices": [{"id": 0, "driver": "host", "capacity": "128MiB"}],
        "gateway": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0"},
        "defaults": {"keep_alive": None, "min_residency": "0s"},
        "models": {SYNC: {**one, "async_runner": False}, ASYNC: {**one, "async_runner": True}},
    }


@pytest.mark.system
async def test_thirty_mixes_are_answered_alike(pair: Pair) -> None:
    await pair.same(range(MIXES))
    for metric in ("vllm:num_preemptions_total", "vllm:prefix_cache_hits_total"):
        assert await pair.metric(ASYNC, metric) > 0, f"the mixes prove nothing about {metric}"


@pytest.mark.system
async def test_one_is_asynchronous_and_the_other_is_not(pair: Pair) -> None:
    assert [("steps are asynchronous" in pair.log(model)) for model in (SYNC, ASYNC)] == [False, True]


@pytest.mark.system
async def test_structured_output_is_one_of_the_choices(pair: Pair) -> None:
    body = {"prompt": "whither", "max_tokens": 16, "temperature": 0.9, "seed": 3, "stream": True}
    body |= {"return_token_ids": True, "structured_outputs": {"choice": list(CHOICES)}}
    theirs, ours = [await run(pair.urls[model], model, [Ask(body)] * 3) for model in (SYNC, ASYNC)]
    assert theirs == ours
    assert [answer.finish for answer in ours] == ["stop"] * 3


@pytest.mark.system
async def test_switches_in_mid_request_change_no_token(pair: Pair) -> None:
    body = {"max_tokens": 400, "temperature": 0.0, "ignore_eos": True, "stream": True, "return_token_ids": True}
    asks = [Ask({**body, "prompt": prompt}) for prompt in ("the harbour", "at night")]
    expected = await run(pair.urls[SYNC], SYNC, asks)
    running = asyncio.create_task(run(pair.urls[ASYNC], ASYNC, asks))
    for _ in range(2):
        await pair.switch(ASYNC)
    assert await running == expected


@pytest.mark.campaign
@pytest.mark.parametrize("hundred", range(10))
async def test_a_thousand_mixes_are_answered_alike(pair: Pair, hundred: int) -> None:
    first = MIXES + 100 * hundred
    await pair.same(range(first, first + 100))
