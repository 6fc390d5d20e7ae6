"""KV blocks pulled between real vLLM engines of different tensor-parallel sizes, in float32: greedy answers are those
of an engine that prefills itself, and different ones where two heads are swapped on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.helpers.engine_file import made, marks
from tests.helpers.vllm_pulls import Pulls, started

pytestmark = marks()

PROMPTS = [
    "the harbour at night, " * 12 + "and then",
    "a list of seven rivers: " * 9 + "the first one is",
    "nobody had told the lighthouse keeper " * 8 + "that",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pulls]:
    folder = tmp_path_factory.mktemp("pull")
    model = await made(folder / "model", "qwen3")
    # The real Mooncake, over its TCP; it wants Debian's libibverbs1. `two` has not chosen it: over our TCP, both ways.
    wanted = [("one", 1, "mooncake"), ("other", 1, "mooncake"), ("two", 2, "tcp")]
    async with started(folder, model, wanted) as engines:
        yield engines


@pytest.mark.parametrize(("source", "sink"), [("one", "other"), ("two", "one"), ("one", "two")])
async def test_answers_are_those_of_local_prefill(pair: Pulls, source: str, sink: str) -> None:
    for prompt in PROMPTS:
        alone = await pair.decode(sink, prompt)
        before = len(pair.pulled(sink))
        ticket = await pair.prefill(source, prompt)
        assert await pair.decode(sink, prompt, ticket) == alone
        blocks = len(pair.read(ticket).parts[0].blocks)
        assert blocks > 2
        assert pair.pulled(sink)[before:] == [(blocks, blocks)] * (2 if sink == "two" else 1)
    if (source, sink) == ("one", "other"):
        assert "come through Mooncake" in pair.engines[sink].log.read_text()


async def test_swapped_heads_give_other_answers(pair: Pulls) -> None:
    """The negative control: what is compared above does depend on what is pulled."""
    for prompt in PROMPTS:
        alone = await pair.decode("one", prompt)
        ticket = pair.swapped(await pair.prefill("two", prompt))
        assert await pair.decode("one", prompt, ticket) != alone


async def test_blocks_that_do_not_come_are_computed(pair: Pulls) -> None:
    for prompt in PROMPTS[:2]:
        alone = await pair.decode("other", prompt)
        ticket = pair.astray(await pair.prefill("one", prompt))
        assert await pair.decode("other", prompt, ticket) == alone
        assert pair.pulled("other")[-1] == (0, len(pair.read(ticket).parts[0].blocks))


async def test_a_ticket_that_cannot_be_used_costs_time_only(pair: Pulls) -> None:
    """Used twice; for another prompt; forged."""
    first, other = PROMPTS[:2]
    alone = await pair.decode("other", first)
    ticket = await pair.prefill("one", first)
    assert await pair.decode("other", first, ticket) == alone
    assert await pair.decode("other", first, ticket) == alone
    wrong = await pair.prefill("one", other)
    assert await pair.decode("other", first, wrong) == alone
    assert await pair.decode("other", first, wrong[:-8] + "AAAAAAA=") == alone
