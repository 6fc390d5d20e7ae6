"""`python -m benchmarks.async_runner`: see the README beside this file."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import msgspec
from rich.console import Console
from rich.progress import Progress

from benchmarks import figures
from benchmarks.async_runner.designs import DESIGNS, Design
from benchmarks.async_runner.goals import GOALS
from benchmarks.async_runner.setting import LOADS, Load, engine, made
from benchmarks.figures import Result
from coordinator.demo import memcpy

QUIET_S = 0.3
SAMPLE = 256 << 20
LIMIT_S = 300.0
PAIRS, QUICK = 20, 2
WARM = 2
"""Pairs that are not counted: the first steps of an engine allocate."""


class Bench:
    """Ratios of time per output token, by design and load."""

    def __init__(self) -> None:
        self.ratios: dict[str, list[float]] = {}
        self.absolute: dict[str, list[float]] = {}
        self.dropped = 0
        self._asked = 0

    async def pair(self, design: Design, load: Load, urls: tuple[str, str], *, counted: bool) -> None:
        before = await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)
        ours, theirs = [await self._tpot(url, load) for url in urls]
        after = await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)
        if not counted:
            return
        if not figures.steady(before, after):
            self.dropped += 1
            return
        name = load.name if design.name == "default" else f"{design.name}_{load.name}"
        self.ratios.setdefault(name, []).append(ours / theirs)
        self.absolute.setdefault(name, []).append(theirs)

    async def _tpot(self, url: str, load: Load) -> float:
        """Seconds per output token after the first, the mean over the requests."""
        await asyncio.sleep(QUIET_S)
        timeout = aiohttp.ClientTimeout(total=LIMIT_S)
        async with aiohttp.ClientSession(timeout=timeout) as http, asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._ask(http, url, load)) for _ in range(load.requests)]
        return sum(task.result() for task in asked) / len(asked)

    async def _ask(self, http: aiohttp.ClientSession, url: str, load: Load) -> float:
        self._asked += 1
        body = {"model": "model", "prompt": f"{self._asked} {time.time_ns()} says", "max_tokens": load.tokens}
        body |= {"temperature": 0, "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}
        first, last, tokens = 0.0, 0.0, 0
        async with http.post(f"{url}/v1/completions", json=body) as reply:
            if reply.status != 200:
                raise RuntimeError(f"{url} answered {reply.status}: {await reply.text()}")
            async for line in reply.content:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if event["choices"]:
                    last = time.perf_counter()
                    first = first or last
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        if tokens != load.tokens:
            raise RuntimeError(f"{tokens} tokens of {load.tokens}")
        return (last - first) / (tokens - 1)


async def measure(designs: list[Design], models: Path, pairs: int, progress: Progress) -> Bench:
    bench = Bench()
    for design in designs:
        for model in design.models:
            with tempfile.TemporaryDirectory(prefix="vnpu-async-") as folder:
                await _compare(bench, design, model, models, Path(folder), pairs, progress)
        _tell(bench, progress)
    return bench


def _tell(bench: Bench, progress: Progress) -> None:
    """What there is after each design: a run of all takes long."""
    for name, pairs in bench.ratios.items():
        found = figures.ratio(pairs)
        progress.console.print(f"{name}: {found.median:.3f} ({found.ci95[0]:.3f}–{found.ci95[1]:.3f}), n {found.n}")


async def _compare(
    bench: Bench, design: Design, model: str, models: Path, folder: Path, pairs: int, progress: Progress
) -> None:
    """Two engines of one design, every load of this model in turns."""
    loads = [load for load in LOADS if load.model == model]
    path = await asyncio.to_thread(made, models, model)
    starting = progress.add_task(f"{design.name}, {model}: starting two engines", total=None)
    async with (
        engine(design.ours, path, folder / "ours") as ours,
        engine(design.theirs, path, folder / "theirs") as not_,
    ):
        progress.remove_task(starting)
        task = progress.add_task(f"{design.name}, {model}: pairs", total=pairs)
        for number in range(pairs + WARM):
            for load in loads:
                await bench.pair(design, load, (ours, not_), counted=number >= WARM)
            progress.advance(task, number >= WARM)


def result(bench: Bench) -> Result:
    return Result(
        benchmark="async_runner",
        version=figures.version(),
        machine=figures.machine(memcpy.seconds_per_byte(SAMPLE)),
        ratios={name: figures.ratio(pairs) for name, pairs in bench.ratios.items()},
        values={f"sync_ms_{name}": 1e3 * sorted(of)[len(of) // 2] for name, of in bench.absolute.items()},
        notes=[f"{bench.dropped} pairs dropped because memcpy drifted"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.async_runner", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="two engines, few pairs: its figures are not judged")
    parser.add_argument("--design", action="append", choices=[one.name for one in DESIGNS], help="only these")
    parser.add_argument("--pairs", type=int, default=None, help=f"default: {PAIRS}")
    parser.add_argument("--models", type=Path, default=Path(".vnpu/bench/models"), help="where models are kept")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    names = arguments.design or (["scheduling"] if arguments.quick else [one.name for one in DESIGNS])
    chosen = [one for one in DESIGNS if one.name in names]
    if arguments.quick:
        chosen = [msgspec.structs.replace(one, models=one.models[:1]) for one in chosen]
    pairs = arguments.pairs or (QUICK if arguments.quick else PAIRS)
    with Progress(console=console) as progress:
        bench = asyncio.run(measure(chosen, arguments.models.absolute(), pairs, progress))
    measured = result(bench)
    figures.show(console, measured, GOALS)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(measured).decode() + "\n")


if __name__ == "__main__":
    main()
