"""Latent (MLA) caches pulled between real vLLM engines, in float32: a tiny DeepSeek-V2, whose ranks all hold the whole
latent head, so that one rank takes a part of a prompt's blocks from each of two.

Local prefill is no reference: vLLM's MLA on a CPU gives other tokens for a prompt's last token by its kernel for steps
than by that for prompts, and by two ranks than by one, without any pull. The reference is an engine that pulls what it
has computed itself: then the same kernels read the same bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from coordinator.supervise.ports import free_port
from tests.helpers.engine_file import made, marks
from tests.helpers.vllm_pulls import Pulls, started
from transfer.kv.ticket import Ticket, seal

pytestmark = marks()

PROMPTS = ["the harbour at night, " * 12 + "and then", "nobody had told the lighthouse keeper " * 8 + "that"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pulls]:
    folder = tmp_path_factory.mktemp("latent")
    model = await made(folder / "model", "deepseek")
    async with started(folder, model, [("one", 1, "tcp"), ("other", 1, "tcp"), ("two", 2, "tcp")]) as engines:
        yield engines


def blocks_of(ticket: Ticket) -> int:
    assert (ticket.mla, ticket.num_kv_heads) == (True, 1)
    [part] = ticket.parts
    return len(part.blocks)


async def test_answers_are_those_of_its_own_blocks(pair: Pulls) -> None:
    for prompt in PROMPTS:
        own = await pair.decode("other", prompt, await pair.prefill("other", prompt))
        ticket = await pair.prefill("one", prompt)
        assert await pair.decode("other", prompt, ticket) == own
        blocks = blocks_of(pair.read(ticket))
        assert blocks > 2
        assert pair.pulled("other")[-2:] == [(blocks, blocks)] * 2


async def test_other_blocks_give_other_answers(pair: Pulls) -> None:
    """The negative control: the prompt's first block in the place of each."""
    for prompt in PROMPTS:
        own = await pair.decode("other", prompt, await pair.prefill("other", prompt))
        found = pair.read(await pair.prefill("one", prompt))
        [part] = found.parts
        first = msgspec.structs.replace(part, blocks=part.blocks[:1] * len(part.blocks))
        ticket = seal(msgspec.structs.replace(found, parts=(first,)), pair.trust)
        assert await pair.decode("other", prompt, ticket) != own
        assert pair.pulled("other")[-1] == (blocks_of(found), blocks_of(found))


@pytest.mark.parametrize(("source", "sink"), [("two", "one"), ("one", "two")])
async def test_every_block_comes_whatever_the_sizes(pair: Pulls, source: str, sink: str) -> None:
    before = len(pair.pulled(sink))
    ticket = await pair.prefill(source, PROMPTS[0])
    await pair.decode(sink, PROMPTS[0], ticket)
    blocks = blocks_of(pair.read(ticket))
    assert pair.pulled(sink)[before:] == [(blocks, blocks)] * (2 if sink == "two" else 1)


@pytest.mark.parametrize("rank", [0, 1])
async def test_a_prompt_of_which_a_part_came_is_computed_from_its_start(pair: Pulls, rank: int) -> None:
    """By the same kernels as without a ticket: those that go on behind a part give other tokens."""
    for prompt in PROMPTS:
        alone = await pair.decode("one", prompt)
        found = pair.read(await pair.prefill("two", prompt))
        doors = list(found.doors)
        doors[rank] = msgspec.structs.replace(doors[rank], port=free_port())
        ticket = seal(msgspec.structs.replace(found, doors=tuple(doors)), pair.trust)
        assert await pair.decode("one", prompt, ticket) == alone
        came, wanted = pair.pulled("one")[-1]
        assert 0 < came < wanted == blocks_of(found)
