"""What a token of an engine with asynchronous steps takes longer while somebody streams its weights."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.progress import Progress

from benchmarks import nodes
from benchmarks.async_runner.designs import EAGER
from benchmarks.weight_stream.engines import LEAST, LIMIT_S, SOURCE, Bench, Found
from coordinator.core.model import Seed

CAPACITY, KV = "512MiB", "64MiB"
TOKENS = 48


def configuration(model: Path) -> dict[str, object]:
    one = {"path": str(model), "kv_cache": KV, "engine_args": EAGER, "async_runner": True}
    return nodes.configuration({SOURCE: one}, CAPACITY, pin=True)


async def measure(model: Path, folder: Path, pairs: int, progress: Progress) -> Found:
    """Answers of `TOKENS` tokens with a stream and without, as `weight_stream` does it with synchronous steps."""
    starting = progress.add_task("starting an engine that is streamed from", total=None)
    async with nodes.running(configuration(model), folder) as found, nodes.mirrored(found) as mirror:
        progress.remove_task(starting)
        async with asyncio.timeout(LIMIT_S):
            await mirror.until(lambda picture: any(seed.whole for seed in picture.of(Seed).values()))
        bench = Bench(model, folder / nodes.CONFIG, folder / nodes.RUN, found, mirror)
        await bench.inflation(pairs, TOKENS, progress)
        return bench.found


def values(found: Found) -> dict[str, float]:
    rates = sorted(found.rates)
    return {"stream_gb_s": rates[len(rates) // 2] / 1e9} if rates else {}


def notes(found: Found) -> list[str]:
    return [f"{found.slow} of the streams came to less than {LEAST / 1e9:g} GB/s"] if found.slow else []
