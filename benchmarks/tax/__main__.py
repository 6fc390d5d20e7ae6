"""`python -m benchmarks.tax`: see the README beside this file."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import msgspec
from rich.console import Console
from rich.progress import Progress

from benchmarks import figures, nodes
from benchmarks.figures import Result
from benchmarks.tax.goals import GOALS
from benchmarks.tax.setting import LOADS, MODEL, Load, plain_command, plain_engine, resident_engine
from coordinator.config import Config, Device, Model, Size
from coordinator.demo import memcpy
from coordinator.demo.scenario import ENGINE_ARGS
from coordinator.supervise.engine_command import engine_command
from coordinator.supervise.ports import free_port

QUIET_S = 1.5
"""Plain vLLM's workers spin for a second after a step (vNPU's do not): that must be over before the other runs."""
SAMPLE = 256 << 20
LIMIT_S = 300.0


class Bench:
    def __init__(self, resident: str, plain: str) -> None:
        self._urls = (resident, plain)
        self._asked = 0
        self.ratios: dict[str, list[float]] = {load.name: [] for load in LOADS}
        self.dropped = 0

    async def pair(self) -> None:
        """Every load on one engine, then on the other; noted unless memcpy drifts meanwhile."""
        before = await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)
        found = {load.name: [await self._speed(url, load) for url in self._urls] for load in LOADS}
        after = await asyncio.to_thread(memcpy.seconds_per_byte, SAMPLE)
        if not figures.steady(before, after):
            self.dropped += 1
            return
        for name, (resident, plain) in found.items():
            self.ratios[name].append(resident / plain)

    async def _speed(self, url: str, load: Load) -> float:
        """Loads a second."""
        await asyncio.sleep(QUIET_S)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT_S)) as http:
            begun = time.perf_counter()
            async with asyncio.TaskGroup() as tasks:
                for _ in range(load.requests):
                    tasks.create_task(self._ask(http, url, load))
            return 1 / (time.perf_counter() - begun)

    async def _ask(self, http: aiohttp.ClientSession, url: str, load: Load) -> None:
        self._asked += 1
        text = f"{self._asked} {time.time_ns()} " + "word " * load.words
        body = {"model": MODEL, "prompt": text, "max_tokens": load.tokens, "temperature": 0, "ignore_eos": True}
        async with http.post(f"{url}/v1/completions", json=body) as reply:
            answer = await reply.json()
            if reply.status != 200 or answer["usage"]["completion_tokens"] != load.tokens:
                raise RuntimeError(f"{url} answered {reply.status}: {answer}")


async def measure(pairs: int, models: Path, progress: Progress) -> Bench:
    with tempfile.TemporaryDirectory(prefix="vnpu-tax-") as folder:
        starting = progress.add_task("starting two engines", total=None)
        async with (
            resident_engine(models, Path(folder)) as resident,
            plain_engine(_plain(models), Path(folder)) as plain,
        ):
            progress.remove_task(starting)
            bench = Bench(resident, plain)
            task = progress.add_task("pairs", total=pairs)
            for _ in range(pairs):
                await bench.pair()
                progress.advance(task)
            return bench


def _plain(models: Path) -> list[str]:
    model = Model(
        path=str((models / MODEL).absolute()), kv_cache=Size(64 << 20), engine_args=dict(ENGINE_ARGS), device=0
    )
    config = Config(devices=[Device(0, Size(1 << 30))], models={MODEL: model})
    port = free_port()
    return plain_command(engine_command(config, MODEL, [], port, "0", sys.executable, spare=False).argv, port)


def result(bench: Bench) -> Result:
    """`resident_over_stock` is the worst of the loads; stock vLLM on CPU runs the same oneDNN kernels, so plain and
    stock are one engine here, and `resident_over_plain` is the mean over the loads."""
    kept = {name: figures.ratio(pairs) for name, pairs in bench.ratios.items() if pairs}
    worst = min(kept, key=lambda name: kept[name].median, default="")
    rounds = zip(*bench.ratios.values(), strict=True)
    means = [sum(one) / len(one) for one in rounds]
    named = {"resident_over_plain": figures.ratio(means), "resident_over_stock": kept[worst]} if worst else {}
    return Result(
        benchmark="tax",
        version=figures.version(),
        machine=figures.machine(memcpy.seconds_per_byte(SAMPLE)),
        ratios=named | kept,
        values={},
        notes=[f"worst load: {worst or 'none'}", f"{bench.dropped} pairs dropped because memcpy drifted"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tax", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="fewer pairs: it must run, its figures are not judged")
    parser.add_argument("--models", type=Path, default=Path(".vnpu/bench/models"), help="where models are kept")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    models = arguments.models.absolute()
    nodes.make_model(models / MODEL, "llama", "medium")
    with Progress(console=console) as progress:
        bench = asyncio.run(measure(1 if arguments.quick else 10, models, progress))
    measured = result(bench)
    figures.show(console, measured, GOALS)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(measured).decode() + "\n")


if __name__ == "__main__":
    main()
