"""Randomised mixes of requests for one engine, drawn from a seed alone, and what an engine answered to them.

What two engines answer is compared, so a mix says everything: prompts, sampling, when clients hang up. Prompts share
beginnings (prefix cache), some are longer than a step takes (chunked prefill), together they want more KV blocks than
there are (preemption). Seeded requests are in mixes of their own, which are short: vLLM 0.32 on a CPU ends with `CPU
Generator does not use offset` where the prompt of a seeded request comes in chunks.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import msgspec

LIMIT_S = 300.0
WORDS = ("harbour", "night", "import", "return", "self", "queue", "of", "the", "error", "value", "stream", "path")
CHOICES = ("north", "south", "east", "west")


class Ask(msgspec.Struct, frozen=True):
    """A completion. `hang_up`: after so many events of its stream the client is gone (0: never)."""

    body: dict[str, Any]
    hang_up: int = 0


class Answer(msgspec.Struct, frozen=True):
    """`tokens` and `logprobs` of an answer, one of each a token; `finish`: vLLM's reason, empty where the client hung
    up before the end."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str


def mix(seed: int) -> list[Ask]:
    draw = random.Random(seed)
    if draw.random() < 0.4:
        return [_ask(draw, "", (1, 2, 4), 0.8) for _ in range(draw.randint(2, 4))]
    beginning = " ".join(draw.choices(WORDS, k=40))
    return [_ask(draw, beginning, (3, 12, 60, 150), 0.0) for _ in range(draw.randint(4, 12))]


def _ask(draw: random.Random, beginning: str, lengths: Sequence[int], seeded: float) -> Ask:
    shared = beginning if draw.random() < 0.5 else ""
    prompt = f"{shared} {' '.join(draw.choices(WORDS, k=draw.choice(lengths)))}"
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": draw.randint(1, 48), "ignore_eos": draw.random() < 0.7}
    body |= {"stream": True, "return_token_ids": True, "temperature": 0.0}
    for chance, more in (
        (seeded, {"temperature": draw.choice([0.7, 1.3]), "seed": draw.randrange(1 << 30)}),
        (0.2, {"top_p": 0.8, "top_k": 40}),
        (0.3, {"logprobs": draw.randint(1, 5)}),
        (0.15, {"repetition_penalty": 1.3}),
        (0.1, {"presence_penalty": 0.7, "frequency_penalty": 0.4}),
        (0.1, {"min_tokens": 6}),
        (0.1, {"logit_bias": {"17": 4.0, "1000": -9.0}}),
        (0.1, {"min_p": 0.05}),
        (0.15, {"structured_outputs": {"choice": list(CHOICES)}}),
    ):
        if draw.random() < chance:
            body |= more
    body["min_tokens"] = min(body.get("min_tokens", 0), body["max_tokens"])
    return Ask(body, hang_up=draw.randint(1, 12) if draw.random() < 0.15 else 0)


async def run(url: str, model: str, asks: Sequence[Ask]) -> list[Answer]:
    """All at once."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT_S)) as http,
        asyncio.TaskGroup() as tasks,
    ):
        asked = [tasks.create_task(_one(http, f"{url}/v1/completions", {**ask.body, "model": model}, ask.hang_up))
                 for ask in asks]  # fmt: skip
    return [task.result() for task in asked]


async def _one(http: aiohttp.ClientSession, url: str, body: Mapping[str, Any], hang_up: int) -> Answer:
    tokens, logprobs, finish, events = list[int](), list[float](), "", 0
    async with http.post(url, json=body) as reply:
        assert reply.status == 200, await reply.text()
        async for line in reply.content:
            text = line.decode().strip().removeprefix("data: ")
            if not text or text == "[DONE]":
                continue
            [choice] = json.loads(text)["choices"]
            tokens += choice["token_ids"] or ()
            logprobs += (choice.get("logprobs") or {}).get("token_logprobs") or ()
            finish = choice["finish_reason"] or finish
            events += 1
            if events == hang_up:
                reply.close()
                break
    return Answer(tuple(tokens), tuple(logprobs), finish)
