"""`python -m benchmarks.sharded_linear`: see the README beside this file."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from benchmarks import figures
from benchmarks.figures import Ratio, Result
from benchmarks.sharded_linear import broadcast, engines, overlap
from benchmarks.sharded_linear.broadcast import Ratios
from benchmarks.sharded_linear.goals import GOALS
from coordinator.demo import memcpy


def result(found: engines.Found, carried: dict[float, list[float]], unsteady: int, gloo: Ratios) -> Result:
    loads = _ratios({f"mapped_over_replicated_{count}": pairs for count, pairs in found.ratios.items()})
    shares = _ratios({f"overlap_over_ideal_{share:g}": pairs for share, pairs in carried.items()})
    return Result(
        benchmark="sharded_linear",
        version=figures.version(),
        machine=figures.machine(memcpy.seconds_per_byte(engines.SAMPLE)),
        ratios={
            **_worst("mapped_over_replicated", loads),
            **_worst("overlap_over_ideal", shares),
            "broadcast_over_sum": figures.ratio(gloo.stock),
            "broadcast_over_own_sum": figures.ratio(gloo.own),
            "bytes_over_predicted": figures.ratio([found.own / found.predicted]),
            **loads,
            **shares,
        },
        values={"replicated_bytes": found.replicated, "own_bytes": found.own},
        notes=[f"dropped: {found.dropped} pairs of engines (memcpy drifted), {unsteady} passes (computing drifted)"],
    )


def _ratios(found: dict[str, list[float]]) -> dict[str, Ratio]:
    """Without those of which no pair was left; the notes count what was dropped."""
    return {name: figures.ratio(pairs) for name, pairs in found.items() if pairs}


def _worst(name: str, of: dict[str, Ratio]) -> dict[str, Ratio]:
    return {name: max(of.values(), key=lambda one: one.median)} if of else {}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharded_linear", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="fewer pairs: it must run, its figures are not judged")
    parser.add_argument("--models", type=Path, default=Path(".vnpu/bench/models"), help="where models are kept")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    model = engines.make_model(arguments.models.absolute())
    with Progress(console=console) as progress:
        task = progress.add_task("layers alone", total=2)
        carried, unsteady = overlap.measure(5 if arguments.quick else 40)
        progress.advance(task)
        gloo = broadcast.measure(5 if arguments.quick else 40)
        progress.advance(task)
        found = asyncio.run(engines.measure(2 if arguments.quick else 12, model, progress))
    measured = result(found, carried, unsteady, gloo)
    figures.show(console, measured, GOALS)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(measured).decode() + "\n")


if __name__ == "__main__":
    main()
