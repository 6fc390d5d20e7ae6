"""Does pulling slow down the requests that the decode engine answers meanwhile? Real engines on one node.

A long answer is streamed. In every other segment of it prompts come whose blocks are pulled, and in the segments
between them prompts that the engine has cached. Of either it computes one token, the last: a prompt is one longer than
whole blocks are. Neighbours are a pair; which kind comes first changes with each answer. The tickets are made before
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
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
    """`answers` of so many `segments` of `tokens` tokens; beside each segment `prompts` of `length` tokens come."""

    answers: int
    segments: int
    prompts: int
    length: int
    tokens: int


FULL = Sizes(16, 8, 2, 897, 48)
QUICK = Sizes(2, 2, 2, 257, 24)
SETTLED = 8
"""Tokens of an answer before its first segment."""
LONGEST = 900
"""Tokens of an answer at most: a segment ends with its last prompt's answer, so answers are longer than `tokens`."""


class Found(msgspec.Struct):
    """Time per token with pulls ÷ without, and answers that were dropped because memcpy drifted."""

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

    async def arrivals(self) -> AsyncGenerator[float, None]:
        """When each token of a long answer came."""
        body = {"model": MODEL, "prompt": fresh(64), "max_tokens": LONGEST, "temperature": 0, "ignore_eos": True}
        url = f"{self._urls[MODEL]}/v1/completions"
        async with self._http.post(url, json={**body, "stream": True}) as reply:
            async for line in reply.content:
                if line.startswith(b"data: {") and json.loads(line[6:])["choices"]:
                    yield time.perf_counter()


async def measure(sizes: Sizes, progress: Progress) -> Found:
    found = Found([])
    with tempfile.TemporaryDirectory(prefix="vnpu-pull-") as name:
        starting = progress.add_task("starting a prefill and a decode engine", total=None)
        async with _node(Path(name)) as run, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LIMIT_S)) as http:
            progress.remove_task(starting)
            task = progress.add_task("answers", total=sizes.answers)
            engines = Engines(run, http)
            known = [fresh(sizes.length) for _ in range(sizes.prompts)]
            for number in range(sizes.answers + 1):
                await _compare(engines, sizes, known, found, number)
                progress.advance(task, number > 0)
    return found


async def _compare(engines: Engines, sizes: Sizes, known: list[Prompt], found: Found, number: int) -> None:
    """The first answer, of number 0, only warms up."""
    before = await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)
    seconds = await _answer(engines, sizes, known, pulls_first=bool(number % 2))
    if not figures.steady(before, await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)):
        found.dropped += 1
    elif number:
        found.ratios += [pulled / cached for pulled, cached in zip(seconds[True], seconds[False], strict=True)]


async def _answer(engines: Engines, sizes: Sizes, known: list[Prompt], *, pulls_first: bool) -> dict[bool, list[float]]:
    """Seconds of its segments, by whether prompts were pulled."""
    for prompt in known:
        await engines.once(prompt)  # in the decode engine's prefix cache from now on
    new = [fresh(sizes.length) for _ in range(sizes.segments // 2 * sizes.prompts)]
    tickets = iter([(prompt, await engines.offer(prompt)) for prompt in new])
    await asyncio.sleep(PAUSE_S)  # the prefill engine's workers spin a little after their last step

    async def ask(prompts: list[tuple[Prompt, str]]) -> None:
        for prompt, ticket in prompts:
            await engines.once(prompt, ticket)

    seconds: dict[bool, list[float]] = {True: [], False: []}
    async with aclosing(engines.arrivals()) as arrivals, asyncio.TaskGroup() as tasks:
        begun = await _after(arrivals, SETTLED)
        for number in range(sizes.segments):
            pulls = pulls_first == (number % 2 == 0)
            beside = list(itertools.islice(tickets, sizes.prompts)) if pulls else [(prompt, "") for prompt in known]
            asking = tasks.create_task(ask(beside))
            ended = await _after(arrivals, sizes.tokens)
            seconds[pulls].append(ended - begun)
            begun = ended
            while not asking.done():
                begun = await _after(arrivals, 1)
    return seconds


async def _after(arrivals: AsyncGenerator[float, None], tokens: int) -> float:
    """When the last of so many tokens came."""
    at = 0.0
    for _ in range(tokens):
        at = await anext(arrivals)
    return at


def fresh(tokens: int) -> Prompt:
    """Never seen before."""
    return random.choices(VOCABULARY, k=tokens)


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
