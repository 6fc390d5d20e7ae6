"""`python -m benchmarks.async_runner`: see the README beside this file."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from benchmarks import figures
from benchmarks.async_runner.asking import SAMPLE, Asking, calibrated
from benchmarks.async_runner.designs import DESIGNS, Design
from benchmarks.async_runner.emulated import Emulated
from benchmarks.async_runner.goals import GOALS
from benchmarks.async_runner.setting import LOADS, Load, engine, made
from benchmarks.figures import Result
from coordinator.demo import memcpy

EMULATED = "emulated"
PAIRS, QUICK = 20, 2
WARM = 2
"""Pairs that are not counted: the first steps of an engine allocate."""


class Bench:
    """Ratios of time per output token, by design and load."""

    def __init__(self) -> None:
        self.ratios: dict[str, list[float]] = {}
        self.absolute: dict[str, list[float]] = {}
        self.dropped = 0
        self._asking = Asking()

    async def pair(self, design: Design, load: Load, urls: tuple[str, str], *, counted: bool) -> None:
        before = await calibrated()
        ours, theirs = [await self._asking.tpot(url, load) for url in urls]
        after = await calibrated()
        if not counted:
            return
        if not figures.steady(before, after):
            self.dropped += 1
            return
        name = load.name if design.name == "default" else f"{design.name}_{load.name}"
        self.ratios.setdefault(name, []).append(ours / theirs)
        self.absolute.setdefault(name, []).append(theirs)


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


def result(bench: Bench, emulated: Emulated) -> Result:
    ratios = {name: figures.ratio(pairs) for name, pairs in bench.ratios.items()}
    values = {f"sync_ms_{name}": 1e3 * sorted(of)[len(of) // 2] for name, of in bench.absolute.items()}
    return Result(
        benchmark="async_runner",
        version=figures.version(),
        machine=figures.machine(memcpy.seconds_per_byte(SAMPLE)),
        ratios={**ratios, **emulated.ratios()},
        values={**values, **emulated.values()},
        notes=[f"{bench.dropped + emulated.dropped} pairs dropped because memcpy drifted"],
    )


def main() -> None:
    every = [one.name for one in DESIGNS] + [EMULATED]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.async_runner", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="two engines, few pairs: its figures are not judged")
    parser.add_argument("--design", action="append", choices=every, help="only these")
    parser.add_argument("--pairs", type=int, default=None, help=f"default: {PAIRS}")
    parser.add_argument("--models", type=Path, default=Path(".vnpu/bench/models"), help="where models are kept")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    names = arguments.design or ([EMULATED] if arguments.quick else every)
    chosen = [one for one in DESIGNS if one.name in names]
    pairs = arguments.pairs or (QUICK if arguments.quick else PAIRS)
    models = arguments.models.absolute()
    emulated = Emulated()
    with Progress(console=console) as progress:
        bench = asyncio.run(measure(chosen, models, pairs, progress))
        if EMULATED in names:
            asyncio.run(_emulate(emulated, models, pairs, progress))
    measured = result(bench, emulated)
    figures.show(console, measured, GOALS)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(measured).decode() + "\n")


async def _emulate(emulated: Emulated, models: Path, pairs: int, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(prefix="vnpu-async-") as folder:
        await emulated.measure(await asyncio.to_thread(made, models, "5mb"), Path(folder), pairs, progress)


if __name__ == "__main__":
    main()
