"""Requests to an engine's own port, and the time a token takes."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from typing import TypeVar

import aiohttp

from benchmarks.async_runner.setting import Load
from coordinator.demo import memcpy

QUIET_S = 0.3
LIMIT_S = 300.0
SAMPLE = 256 << 20
T = TypeVar("T")


async def calibrated() -> float:
    """Seconds per byte of memcpy, now."""
    return await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)


class Orders:
    """In which order engines are asked: drawn with a seed, and the next time the same backwards. So of any two engines
    each is asked before the other as often, but for one."""

    def __init__(self, seed: int = 0) -> None:
        self._draw = random.Random(seed)
        self._backwards: list[int] = []

    def next(self, engines: Sequence[T]) -> list[T]:
        """The same engines each time."""
        places = self._backwards or self._draw.sample(range(len(engines)), len(engines))
        self._backwards = [] if self._backwards else places[::-1]
        return [engines[place] for place in places]


class Asking:
    """By streaming completions with prompts never seen before."""

    def __init__(self, quiet_s: float = QUIET_S) -> None:
        """`quiet_s`: seconds before each load; the engine that was asked before spins a little."""
        self._quiet_s = quiet_s
        self._asked = 0

    async def tpot(self, url: str, load: Load) -> float:
        """Seconds per output token after the first, the mean over the requests."""
        return _mean([(last - first) / (load.tokens - 1) for _, first, last in await self._all(url, load)])

    async def whole(self, url: str, load: Load) -> float:
        """Seconds per output token from the request on: a client that got no core for a while does not shorten it."""
        return _mean([(last - sent) / load.tokens for sent, _, last in await self._all(url, load)])

    async def _all(self, url: str, load: Load) -> list[tuple[float, float, float]]:
        await asyncio.sleep(self._quiet_s)
        timeout = aiohttp.ClientTimeout(total=LIMIT_S)
        async with aiohttp.ClientSession(timeout=timeout) as http, asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._ask(http, url, load)) for _ in range(load.requests)]
        return [task.result() for task in asked]

    async def _ask(self, http: aiohttp.ClientSession, url: str, load: Load) -> tuple[float, float, float]:
        """When it was sent, and when the first and the last token came."""
        self._asked += 1
        body = {"model": "model", "prompt": f"{self._asked} {time.time_ns()} says", "max_tokens": load.tokens}
        body |= {"temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
        sent, first, last, tokens = time.perf_counter(), 0.0, 0.0, 0
        async with http.post(f"{url}/v1/completions", json=body) as reply:
            if reply.status != 200:
                raise RuntimeError(f"{url} answered {reply.status}: {await reply.text()}")
            async for line in reply.content:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(f"{url} answered {event['error']}")
                if event["choices"]:
                    last = time.perf_counter()
                    first = first or last
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        if tokens != load.tokens:
            raise RuntimeError(f"{tokens} tokens of {load.tokens}")
        return sent, first, last


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
