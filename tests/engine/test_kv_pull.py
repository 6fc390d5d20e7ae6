"""KV blocks pulled between real vLLM engines of different tensor-parallel sizes, in float32: greedy answers are those
of an engine that prefills itself, and different ones where two heads are swapped on the way."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from coordinator.cli.make_model import Recipe, make_model
from tests.helpers.vllm_engine import VllmEngine
from transfer.kv.ticket import seal, unseal
from transfer.transports.trust import Trust

pytestmark = [
    pytest.mark.engine,
    pytest.mark.system,
    pytest.mark.timeout(1800),
    pytest.mark.asyncio(loop_scope="module"),
]

CONNECTOR = {
    "kv_connector": "VnpuConnector",
    "kv_connector_module_path": "engine_patch.kv_connector",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}
PROMPTS = [
    "the harbour at night, " * 12 + "and then",
    "a list of seven rivers: " * 9 + "the first one is",
    "nobody had told the lighthouse keeper " * 8 + "that",
]
TOKENS = 24


FABRIC = "mooncake" if importlib.util.find_spec("mooncake") else "tcp"
"""What `one` and `other` have chosen; `two` has not, so it is read over TCP, and reads so. Where Mooncake is installed
it is the real one, over its TCP."""


class Pair:
    """Engines by name: `one` and `other` have one rank, `two` has two."""

    def __init__(self, engines: dict[str, VllmEngine], trust: Trust) -> None:
        self.engines = engines
        self.trust = trust

    async def prefill(self, engine: str, prompt: str) -> str:
        """The ticket."""
        answer = await self.engines[engine].ask(prompt, 1, {"vnpu": "offer"})
        ticket: str = answer["kv_transfer_params"]["vnpu"]
        return ticket

    async def decode(self, engine: str, prompt: str, ticket: str = "") -> list[int]:
        params = {"vnpu": ticket} if ticket else None
        answer = await self.engines[engine].ask(prompt, TOKENS, params)
        ids: list[int] = answer["choices"][0]["token_ids"]
        return ids

    def pulled(self, engine: str) -> list[tuple[int, int]]:
        """Of each pull: blocks that have come, and that were wanted; a line for each rank."""
        log = self.engines[engine].log.read_text()
        found = re.findall(r"kv pull of \S+: (\d+) of (\d+) blocks came", log)
        return [(int(came), int(wanted)) for came, wanted in found]

    def swapped(self, ticket: str) -> str:
        """The same ticket with its ranks the wrong way round."""
        found = unseal(ticket, self.trust)
        return seal(msgspec.structs.replace(found, doors=found.doors[::-1]), self.trust)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    folder = tmp_path_factory.mktemp("pull")
    model = folder / "model"
    await asyncio.to_thread(make_model, model, Recipe(arch="qwen3", size="tiny"), as_json=True)
    key = folder / "key"
    key.touch(0o600)
    key.write_text(secrets.token_hex(32))
    async with AsyncExitStack() as stack:
        engines = {}
        for name, ranks, transport in (("one", 1, FABRIC), ("other", 1, FABRIC), ("two", 2, "tcp")):
            engines[name] = await stack.enter_async_context(await start(folder, name, model, ranks, key, transport))
            await engines[name].ready()
        yield Pair(engines, Trust(key.read_bytes()))


async def start(folder: Path, name: str, model: Path, ranks: int, key: Path, transport: str) -> VllmEngine:
    binding = "0" if ranks == 1 else "0|1"
    connector = CONNECTOR | {"kv_connector_extra_config": {"transport": transport}}
    more = ["--dtype", "float32", "--kv-transfer-config", json.dumps(connector), "--tensor-parallel-size", str(ranks)]
    environment = {"VNPU_TRANSFER_KEY_FILE": str(key), "VLLM_CPU_OMP_THREADS_BIND": binding}
    return await VllmEngine.start(folder, "", name, model, node="none", kv=32 << 20, more=more, environment=environment)


@pytest.mark.parametrize(("source", "sink"), [("one", "other"), ("two", "one"), ("one", "two")])
async def test_answers_are_those_of_local_prefill(pair: Pair, source: str, sink: str) -> None:
    for prompt in PROMPTS:
        alone = await pair.decode(sink, prompt)
        before = len(pair.pulled(sink))
        ticket = await pair.prefill(source, prompt)
        assert await pair.decode(sink, prompt, ticket) == alone
        blocks = len(unseal(ticket, pair.trust).parts[0].blocks)
        assert blocks > 2
        assert pair.pulled(sink)[before:] == [(blocks, blocks)] * (2 if sink == "two" else 1)
    if (source, sink) == ("one", "other"):
        assert ("come through Mooncake" in pair.engines[sink].log.read_text()) == (FABRIC == "mooncake")


async def test_swapped_heads_give_other_answers(pair: Pair) -> None:
    """The negative control: what is compared above does depend on what is pulled."""
    for prompt in PROMPTS:
        alone = await pair.decode("one", prompt)
        ticket = pair.swapped(await pair.prefill("two", prompt))
        assert await pair.decode("one", prompt, ticket) != alone


async def test_a_ticket_that_cannot_be_used_costs_time_only(pair: Pair) -> None:
    """Used twice; for another prompt; forged."""
    first, other = PROMPTS[:2]
    alone = await pair.decode("other", first)
    ticket = await pair.prefill("one", first)
    assert await pair.decode("other", first, ticket) == alone
    assert await pair.decode("other", first, ticket) == alone
    wrong = await pair.prefill("one", other)
    assert await pair.decode("other", first, wrong) == alone
    assert await pair.decode("other", first, wrong[:-8] + "AAAAAAA=") == alone
