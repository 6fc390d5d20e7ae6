"""KV blocks pulled between real vLLM engines of a model with two KV groups: every other layer has a sliding window."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.helpers.engine_file import made, marks
from tests.helpers.vllm_pulls import Pulls, started

pytestmark = marks()
WINDOW = 64
PROMPTS = ["the harbour at night, " * 24 + "and then", "nobody had told the lighthouse keeper " * 16 + "that"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pulls]:
    folder = tmp_path_factory.mktemp("groups")
    model = await made(folder / "model", "llama")
    config = json.loads((model / "config.json").read_text())
    kinds = ["sliding_attention", "full_attention"] * (config["num_hidden_layers"] // 2)
    (model / "config.json").write_text(json.dumps(config | {"layer_types": kinds, "sliding_window": WINDOW}))
    async with started(folder, model, [("source", 1, "tcp"), ("sink", 1, "tcp")]) as engines:
        yield engines


async def test_answers_are_those_of_local_prefill(pair: Pulls) -> None:
    """What lies outside of the window is neither held nor pulled."""
    for prompt in PROMPTS:
        alone = await pair.decode("sink", prompt)
        ticket = await pair.prefill("source", prompt)
        held = [sum(block != 0 for block in part.blocks) for part in pair.read(ticket).parts]
        assert len(held) == 2
        assert min(held) < max(held)
        assert await pair.decode("sink", prompt, ticket) == alone
        came, wanted = pair.pulled("sink")[-1]
        assert came == wanted == sum(held)


async def test_what_did_not_come_is_computed(pair: Pulls) -> None:
    """vLLM takes no block ids of several groups: the request is told, and computed from its start."""
    for prompt in PROMPTS:
        alone = await pair.decode("sink", prompt)
        ticket = pair.astray(await pair.prefill("source", prompt))
        assert await pair.decode("sink", prompt, ticket) == alone
        assert pair.pulled("sink")[-1][0] == 0
