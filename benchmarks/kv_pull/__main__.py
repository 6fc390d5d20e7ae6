"""`python -m benchmarks.kv_pull`: see the README beside this file."""

from __future__ import annotations

import argparse
import asyncio
import sys

import msgspec
from rich.console import Console
from rich.progress import Progress

from benchmarks import figures
from benchmarks.figures import Result
from benchmarks.kv_pull import tpot
from benchmarks.kv_pull.bench import Bench, Samples
from benchmarks.kv_pull.goals import GOALS
from benchmarks.kv_pull.work import MIB
from coordinator.demo import memcpy


def result(samples: Samples) -> Result:
    return Result(
        benchmark="kv_pull",
        version=figures.version(),
        machine=figures.machine(memcpy.seconds_per_byte()),
        ratios={name: figures.ratio(pairs) for name, pairs in sorted(samples.pairs.items()) if pairs},
        values=samples.values,
        notes=samples.notes,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kv_pull", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="fewer pairs: it must run, its figures are not judged")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    rounds, sizes = (5, [20 * MIB]) if arguments.quick else (24, [20 * MIB, 200 * MIB])
    with Progress(console=console) as progress:
        samples = Bench(rounds, sizes, progress, judged=not arguments.quick).run()
        inflated = asyncio.run(tpot.measure(tpot.QUICK if arguments.quick else tpot.FULL, progress))
    samples.pairs["decode_tpot_inflation"] = inflated.ratios
    samples.notes.append(f"{inflated.dropped} pairs of answers dropped because memcpy drifted")
    measured = result(samples)
    figures.show(console, measured, GOALS)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(measured).decode() + "\n")


if __name__ == "__main__":
    main()
