"""Does pulling slow down the requests that the decode engine answers meanwhile? Real engines on one node.

A long answer is streamed while prompts come in, each good for one token: with tickets, so that their blocks are pulled,
and, beside it, prompts that the engine has cached. Of either it computes one token, the last: a prompt is one longer
than whole blocks are. Before either the prefill engine computes as many prompts; which comes first changes each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from rich.progress import Progress

from benchmarks import figures, nodes
from coordinator.demo import memcpy
from coordinator.supervise.layout import RunFile

MODEL = "chat"
CAPACITY, KV = "2GiB", "192MiB"
ARGS = {"max_model_len": 1024, "max_num_seqs": 8, "block_size": 32, "enforce_eager": True}
SAMPLE = 256 << 20
LIMIT_S = 600.0
PAUSE_S = 0.3
VOCABULARY = range(100, 1000)

Prompt = list[int]


class Sizes(msgspec.Struct, frozen=True):
    """`pairs` of answers of `tokens` tokens each; `prompts` of so many `length` tokens are pulled during one."""

    pairs: int
    prompts: int
    length: int
    tokens: int


FULL = Sizes(24, 4, 897, 96)
QUICK = Sizes(2, 2, 257, 32)


class Found(msgspec.Struct):
    """Time per token with pulls ÷ without, and pairs that were dropped because memcpy drifted."""

    ratios: list[float]
    dropped: int = 0


class Engines:
    """The prefill and the decode engine of the node, each by its own port."""

    def __init__(self, run: RunFile, http: aiohttp.ClientSession) -> None:
        self._urls = nodes.urls(run)
        self._http = http

    async def offer(self, prompt: Prompt) -> str:
        """The ticket."""
        answer = await self._ask(f"{MODEL}@prefill", prompt, {"vnpu": "offer"})
        ticket: str = answer["kv_transfer_params"]["vnpu"]
        return ticket

    async def compute(self, prompt: Prompt) -> None:
        """One token of the prefill engine."""
        await self._ask(f"{MODEL}@prefill", prompt, None)

    async def once(self, prompt: Prompt, ticket: str = "") -> None:
        """One token of the decode engine."""
        await self._ask(MODEL, prompt, {"vnpu": ticket} if ticket else None)

    async def _ask(self, name: str, prompt: Prompt, transfer: dict[str, str] | None) -> Any:
        body: dict[str, Any] = {"model": name, "prompt": prompt, "max_tokens": 1, "temperature": 0}
        if transfer:
            body["kv_transfer_params"] = transfer
        async with self._http.post(f"{self._urls[name]}/v1/completions", json=body) as reply:
            if reply.status != 200:
                raise RuntimeError(f"{name} answered {reply.status}: {await reply.text()}")
            return await reply.json()

    async def tpot(self, tokens: int, beside: Callable[[], Awaitable[None]]) -> float:
        """Seconds a token of a streamed answer; `beside` begins with its first token."""
        body = {"model": MODEL, "prompt": fresh(64), "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        times: list[float] = []
        async with asyncio.TaskGroup() as tasks:
            url = f"{self._urls[MODEL]}/v1/completions"
            async with self._http.post(url, json={**body, "stream": True}) as reply:
                async for line in reply.content:
                    if line.startswith(b"data: {") and json.loads(line[6:])["choices"]:
                        times.append(time.perf_counter())
                        if len(times) == 1:
                            tasks.create_task(_await(beside()))
        return (times[-1] - times[0]) / (len(times) - 1)


async def measure(sizes: Sizes, progress: Progress) -> Found:
    found = Found([])
    with tempfile.TemporaryDirectory(prefix="vnpu-pull-") as name:
        starting = progress.add_task("starting a prefill and a decode engine", total=None)
        async with _node(Path(name)) as run, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LIMIT_S)) as http:
            progress.remove_task(starting)
            task = progress.add_task("pairs of answers", total=sizes.pairs)
            engines = Engines(run, http)
            known = [fresh(sizes.length) for _ in range(sizes.prompts)]
            for pair in range(sizes.pairs + 1):
                await _pair(engines, sizes, known, found, number=pair)
                progress.advance(task, pair > 0)
    return found


async def _pair(engines: Engines, sizes: Sizes, known: list[Prompt], found: Found, *, number: int) -> None:
    """The first, of number 0, only warms up."""
    before = await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)
    for prompt in known:
        await engines.once(prompt)  # in the decode engine's prefix cache from now on
    sides = [_without, _during]
    order = sides if number % 2 else sides[::-1]
    times = {side: await side(engines, sizes, known) for side in order}
    if not figures.steady(before, await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)):
        found.dropped += 1
    elif number:
        found.ratios.append(times[_during] / times[_without])


async def _without(engines: Engines, sizes: Sizes, known: list[Prompt]) -> float:
    for _ in known:
        await engines.compute(fresh(sizes.length))

    async def cached() -> None:
        for prompt in known:
            await engines.once(prompt)

    return await _tpot(engines, sizes, cached)


async def _during(engines: Engines, sizes: Sizes, known: list[Prompt]) -> float:
    new = [fresh(sizes.length) for _ in known]
    tickets = [await engines.offer(prompt) for prompt in new]

    async def pulled() -> None:
        for prompt, ticket in zip(new, tickets, strict=True):
            await engines.once(prompt, ticket)

    return await _tpot(engines, sizes, pulled)


async def _tpot(engines: Engines, sizes: Sizes, beside: Callable[[], Awaitable[None]]) -> float:
    await asyncio.sleep(PAUSE_S)  # the prefill engine's workers spin a little after their last step
    return await engines.tpot(sizes.tokens, beside)


def fresh(tokens: int) -> Prompt:
    """Never seen before."""
    return random.choices(VOCABULARY, k=tokens)


async def _await(work: Awaitable[None]) -> None:
    await work


def configuration(model: Path) -> dict[str, object]:
    one = {
        "path": str(model),
        "kv_cache": KV,
        "pin": True,
        "engine_args": ARGS,
        "roles": {"prefill": {"device": 0}, "decode": {"device": 0}},
    }
    return nodes.configuration({MODEL: one}, CAPACITY)


@contextlib.asynccontextmanager
async def _node(folder: Path) -> AsyncIterator[RunFile]:
    model = await asyncio.to_thread(nodes.make_model, folder / "model", "qwen3", "small")
    async with nodes.running(configuration(model), folder) as run:
        yield run
