"""Real engines: what a source's decoding pays while its weights are streamed, and how soon an engine is ready by
streaming and from disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import msgspec
from rich.progress import Progress

from benchmarks import figures, nodes
from coordinator.config import load
from coordinator.core.model import Phase, Residency, Seed
from coordinator.demo import memcpy
from coordinator.demo.node import own_environment
from coordinator.demo.scenario import ENGINE_ARGS
from coordinator.picture import Mirror, Picture
from coordinator.supervise.engine_command import cores_by_engine
from coordinator.supervise.layout import RunFile

SOURCE, STREAMED, DISK = "source", "streamed", "disk"
LIMIT_S = 600.0
SAMPLE = 128 << 20
LEAST = 0.5e9
"""Bytes a second that the stream must come to, or the pair says nothing about what decoding pays."""


class Found(msgspec.Struct):
    """Paired ratios, the rate of the streams in bytes a second, seconds until ready, and what was dropped."""

    tpot: list[float] = []
    rates: list[float] = []
    warm: list[float] = []
    cold: list[float] = []
    ready: dict[str, list[float]] = {}
    dropped: int = 0
    slow: int = 0


class Start(NamedTuple):
    """How an engine gets its weights: its name, and whether the page cache has forgotten its files."""

    kind: str
    name: str
    cold: bool = False


STARTS = (Start("stream", STREAMED), Start("warm", DISK), Start("cold", DISK, cold=True))


class Sizes(msgspec.Struct, frozen=True):
    """`pairs` of decoding with and without a stream, of `tokens` each; `rounds` of `starts`."""

    model: str
    pairs: int
    tokens: int
    rounds: int
    starts: tuple[Start, ...] = STARTS


FULL = Sizes("large", 20, 96, 5)
QUICK = Sizes("small", 2, 48, 1, STARTS[:1])  # two engines in all: more would take minutes


def make_model(folder: Path, size: str) -> Path:
    return nodes.make_model(folder / f"stream-{size}", "qwen3", size)


def configuration(model: Path) -> dict[str, object]:
    one = {"path": str(model), "kv_cache": "64MiB", "engine_args": dict(ENGINE_ARGS)}
    models = {SOURCE: one, STREAMED: {**one, "load_from": "peers"}, DISK: one}
    return nodes.configuration(models, "3GiB", keep_alive="1h")


class Bench:
    """A node whose source engine is up; the others are started and stopped by hand."""

    def __init__(self, model: Path, config: Path, run_dir: Path, found: RunFile, mirror: Mirror) -> None:
        self._model = model
        self._config = config
        self._run_dir = run_dir
        self._mirror = mirror
        self._url = nodes.urls(found)[SOURCE]
        self._asked = 0
        self.found = Found()

    # ---- what decoding pays

    async def inflation(self, pairs: int, tokens: int, progress: Progress) -> None:
        """Fills `tpot` and `rates`."""
        task = progress.add_task("decoding, with and without a stream", total=pairs)
        async with self._reader() as reader:
            await self._streamed(reader, tokens)  # the files are summed up at the first question
            for _ in range(pairs):
                before = await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)
                alone = await self._tpot(tokens)
                streamed, rate = await self._streamed(reader, tokens)
                after = await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)
                self.found.rates.append(rate)
                if not figures.steady(before, after):
                    self.found.dropped += 1
                else:
                    self.found.tpot.append(streamed / alone)
                    self.found.slow += rate < LEAST
                progress.advance(task)

    @contextlib.asynccontextmanager
    async def _reader(self) -> AsyncIterator[asyncio.subprocess.Process]:
        seed = next(seed for name, seed in self._mirror.picture.of(Seed).items() if name.startswith(f"{SOURCE}/"))
        words = [str(self._model), str(self._run_dir / "transfer.key"), seed.host, str(seed.port)]
        words.append(core_of(SOURCE, self._config))
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.weight_stream.reader", *words, stdin=pipe, stdout=pipe
        )
        try:
            yield child
        finally:
            child.kill()
            await child.wait()

    async def _streamed(self, reader: asyncio.subprocess.Process, tokens: int) -> tuple[float, float]:
        """Seconds a token while it reads, and its bytes a second."""
        if reader.stdin is None or reader.stdout is None:
            raise RuntimeError("the reader has no pipes")
        reader.stdin.write(b"go\n")
        tpot = await self._tpot(tokens)
        reader.stdin.write(b"stop\n")
        told = json.loads(await reader.stdout.readline())
        return tpot, told["bytes"] / told["seconds"]

    async def _tpot(self, tokens: int) -> float:
        """Seconds a token of one stream, the first excepted."""
        self._asked += 1
        body = {"model": SOURCE, "prompt": f"{self._asked} {time.time_ns()} and so", "max_tokens": tokens}
        body |= {"temperature": 0, "ignore_eos": True, "stream": True}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT_S)) as http,
            http.post(f"{self._url}/v1/completions", json=body) as reply,
        ):
            times = [time.perf_counter() async for line in reply.content if line.startswith(b"data: {")]
        return (times[-1] - times[0]) / (tokens - 1)

    # ---- how soon an engine is ready

    async def ready(self, rounds: int, starts: tuple[Start, ...], progress: Progress) -> None:
        """Fills `ready`, and `warm` and `cold` where both sides are among `starts`."""
        task = progress.add_task("engines by stream and from disk", total=len(starts) * rounds)
        for _ in range(rounds):
            took = {}
            for start in starts:
                took[start.kind] = await self._start(start)
                self.found.ready.setdefault(start.kind, []).append(took[start.kind])
                progress.advance(task)
            for kind, ratios in (("warm", self.found.warm), ("cold", self.found.cold)):
                if {"stream", kind} <= took.keys():
                    ratios.append(took["stream"] / took[kind])

    async def _start(self, start: Start) -> float:
        """Seconds from the start of its process until it is resident; it is gone afterwards."""
        name = start.name
        words = ["engine", name, "--config", str(self._config), "--run-dir", str(self._run_dir), "--print"]
        line = await asyncio.to_thread(subprocess.check_output, [*nodes.VNPU, *words], text=True)
        await asyncio.to_thread(_evict if start.cold else _warm, self._model)
        begun = time.perf_counter()
        with (self._run_dir / f"{name}.log").open("wb") as log:
            child = await asyncio.create_subprocess_exec(
                "bash", "-c", f"exec {line}", env=own_environment(os.environ), stdout=log, stderr=log
            )
        try:
            async with asyncio.timeout(LIMIT_S):
                await self._mirror.until(lambda picture: _resident(picture, name))
            return time.perf_counter() - begun
        finally:
            child.terminate()
            await child.wait()
            async with asyncio.timeout(LIMIT_S):
                await self._mirror.until(lambda picture: name not in picture.of(Residency))


def core_of(engine: str, config: Path) -> str:
    """On which `vnpu up` lets an engine of one rank compute, where a node has more engines than cores."""
    found = cores_by_engine(load(config, os.environ), sorted(os.sched_getaffinity(0)))[engine]
    return found.split(",")[0].split("-")[0]


def _resident(picture: Picture, name: str) -> bool:
    one = picture.of(Residency).get(name)
    return one is not None and one.phase is Phase.RESIDENT


def _warm(model: Path) -> None:
    for file in model.glob("*.safetensors"):
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass


def _evict(model: Path) -> None:
    """The kernel forgets what it has of these files; what somebody has mapped stays."""
    for file in model.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


async def measure(sizes: Sizes, models: Path, progress: Progress) -> Found:
    """Start a node, and everything above."""
    model = await asyncio.to_thread(make_model, models, sizes.model)
    with tempfile.TemporaryDirectory(prefix="vnpu-stream-") as folder:
        here, without = Path(folder), ("--without", STREAMED, "--without", DISK)
        starting = progress.add_task("starting an engine", total=None)
        async with (
            nodes.running(configuration(model), here, *without) as found,
            nodes.mirrored(found) as mirror,
        ):
            progress.remove_task(starting)
            async with asyncio.timeout(LIMIT_S):
                await mirror.until(lambda picture: any(seed.whole for seed in picture.of(Seed).values()))
            bench = Bench(model, here / nodes.CONFIG, here / nodes.RUN, found, mirror)
            await bench.inflation(sizes.pairs, sizes.tokens, progress)
            await bench.ready(sizes.rounds, sizes.starts, progress)
            return bench.found
