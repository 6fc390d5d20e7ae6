"""`python -m benchmarks.async_runner`: see the README beside this file."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from benchmarks import figures
from benchmarks.async_runner import beside
from benchmarks.async_runner.asking import SAMPLE, Asking, Orders, calibrated
from benchmarks.async_runner.designs import DESIGNS, Design, Side
from benchmarks.async_runner.emulated import Emulated
from benchmarks.async_runner.goals import GOALS
from benchmarks.async_runner.setting import LOADS, MODELS, Load, engine, made
from benchmarks.figures import Result
from benchmarks.weight_stream.engines import Found as Streamed
from coordinator.demo import memcpy

EMULATED, BESIDE = "emulated", "stream"
PAIRS, QUICK = 8, 2
"""A round of all engines of a model takes ten to twenty seconds, a pair with a stream four."""
EMULATED_PAIRS = 6
"""Of each share; a pair takes two to four seconds."""
WARM = 2
"""Pairs that are not counted: the first steps of an engine allocate."""


class Bench:
    """Ratios of time per output token, by design and load."""

    def __init__(self) -> None:
        self.ratios: dict[str, list[float]] = {}
        self.absolute: dict[str, list[float]] = {}
        self.dropped = 0
        self._asking = Asking()

    async def round(self, designs: list[Design], load: Load, engines: list[tuple[Side, str]], *, counted: bool) -> None:
        """Each engine once, in this order; each design compares two of them."""
        before = await calibrated()
        taken = [(side, await self._asking.tpot(url, load)) for side, url in engines]
        after = await calibrated()
        if not counted:
            return
        if not figures.steady(before, after):
            self.dropped += 1
            return
        for design in designs:
            ours, theirs = [
                next(seconds for side, seconds in taken if side == of) for of in (design.ours, design.theirs)
            ]
            name = load.name if design.name == "default" else f"{design.name}_{load.name}"
            self.ratios.setdefault(name, []).append(ours / theirs)
            self.absolute.setdefault(name, []).append(theirs)


async def measure(designs: list[Design], models: Path, pairs: int, progress: Progress) -> Bench:
    bench = Bench()
    for model in MODELS:
        if chosen := [design for design in designs if model in design.models]:
            with tempfile.TemporaryDirectory(prefix="vnpu-async-") as folder:
                await _compare(bench, chosen, model, models, Path(folder), pairs, progress)
            _tell(bench, progress)
    return bench


def _tell(bench: Bench, progress: Progress) -> None:
    """What there is after each model: a run of all takes long."""
    for name, pairs in bench.ratios.items():
        found = figures.ratio(pairs)
        progress.console.print(f"{name}: {found.median:.3f} ({found.ci95[0]:.3f}–{found.ci95[1]:.3f}), n {found.n}")


async def _compare(
    bench: Bench, designs: list[Design], model: str, models: Path, folder: Path, pairs: int, progress: Progress
) -> None:
    """One engine of each kind that these designs compare, asked in turns, with every load of this model."""
    loads = [load for load in LOADS if load.model == model]
    path = await asyncio.to_thread(made, models, model)
    sides: list[Side] = []
    for side in (each for design in designs for each in (design.ours, design.theirs)):
        sides += [side] if side not in sides else []
    async with contextlib.AsyncExitStack() as stack:
        starting = progress.add_task(f"{model}: starting engines", total=len(sides))
        engines = []
        for number, side in enumerate(sides):
            engines.append((side, await stack.enter_async_context(engine(side, path, folder / str(number)))))
            progress.advance(starting)
        orders, task = Orders(), progress.add_task(f"{model}: rounds", total=pairs)
        for number in range(pairs + WARM):
            order = orders.next(engines)
            for load in loads:
                await bench.round(designs, load, order, counted=number >= WARM)
            progress.advance(task, number >= WARM)


def result(bench: Bench, emulated: Emulated, streamed: Streamed) -> Result:
    ratios = {name: figures.ratio(pairs) for name, pairs in bench.ratios.items()}
    if streamed.tpot:
        ratios["tpot_beside_stream"] = figures.ratio(streamed.tpot)
    values = {f"sync_ms_{name}": 1e3 * sorted(of)[len(of) // 2] for name, of in bench.absolute.items()}
    return Result(
        benchmark="async_runner",
        version=figures.version(),
        machine=figures.machine(memcpy.seconds_per_byte(SAMPLE)),
        ratios={**ratios, **emulated.ratios()},
        values={**values, **emulated.values(), **beside.values(streamed)},
        notes=[
            f"{bench.dropped + emulated.dropped + streamed.dropped} pairs dropped because memcpy drifted",
            *beside.notes(streamed),
        ],
    )


def main() -> None:
    every = [one.name for one in DESIGNS] + [EMULATED, BESIDE]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.async_runner", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="two engines, few pairs: its figures are not judged")
    parser.add_argument("--design", action="append", choices=every, help="only these")
    parser.add_argument("--pairs", type=int, default=None, help=f"default: {PAIRS}; of `{EMULATED}` {EMULATED_PAIRS}")
    parser.add_argument("--models", type=Path, default=Path(".vnpu/bench/models"), help="where models are kept")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    names = arguments.design or ([EMULATED] if arguments.quick else every)
    given = arguments.pairs or (QUICK if arguments.quick else None)
    with Progress(console=console) as progress:
        measured = asyncio.run(_everything(names, arguments.models.absolute(), given, progress))
    figures.show(console, measured, GOALS)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(measured).decode() + "\n")


async def _everything(names: list[str], models: Path, pairs: int | None, progress: Progress) -> Result:
    bench = await measure([one for one in DESIGNS if one.name in names], models, pairs or PAIRS, progress)
    emulated, streamed = Emulated(), Streamed()
    with tempfile.TemporaryDirectory(prefix="vnpu-async-") as folder:
        if EMULATED in names:
            model = await asyncio.to_thread(made, models, "5mb")
            await emulated.measure(model, Path(folder) / EMULATED, pairs or EMULATED_PAIRS, progress)
        if BESIDE in names:
            model = await asyncio.to_thread(made, models, "200mb")
            streamed = await beside.measure(model, Path(folder) / BESIDE, pairs or PAIRS, progress)
    return result(bench, emulated, streamed)


if __name__ == "__main__":
    main()
