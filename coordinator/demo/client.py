"""Requests as users send them: the official `openai` client against the gateway, streaming, greedy."""

from __future__ import annotations

import asyncio
import time

import msgspec
from openai import AsyncOpenAI

from coordinator.demo.scenario import Prompt

REQUEST_LIMIT_S = 180.0


class Answer(msgspec.Struct, frozen=True):
    """What came back: token ids, seconds to the first token and to the last."""

    tokens: list[int]
    ttft_s: float
    total_s: float


def connect(gateway: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{gateway}/v1", api_key="none", max_retries=0, timeout=REQUEST_LIMIT_S)


async def ask(client: AsyncOpenAI, prompt: Prompt, started: asyncio.Event | None = None) -> Answer:
    """Send one chat prompt, streaming; `ttft_s` is from sending to the first chunk that carries a token;
    `started` is set then."""
    begun = time.perf_counter()
    first = 0.0
    tokens: list[int] = []
    stream = await client.chat.completions.create(
        model=prompt.model,
        messages=[{"role": "user", "content": prompt.text}],
        max_tokens=prompt.max_tokens,
        temperature=0.0,
        stream=True,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    async for chunk in stream:
        ids = getattr(chunk.choices[0], "token_ids", None) if chunk.choices else None
        if ids:
            first = first or time.perf_counter()
            if started is not None:
                started.set()
            tokens.extend(ids)
    ended = time.perf_counter()
    return Answer(tokens=tokens, ttft_s=(first or ended) - begun, total_s=ended - begun)
