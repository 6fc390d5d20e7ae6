"""`python -m benchmarks.policy`: see the README beside this file."""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

import msgspec
from rich.console import Console
from rich.progress import Progress

from benchmarks import figures
from benchmarks.figures import Result
from benchmarks.policy import bench, traces
from benchmarks.policy.bench import Trace
from benchmarks.policy.goals import GOALS
from coordinator.demo import memcpy

QUICK = 4
"""Traces of each family with `--quick`."""


def run(names: list[tuple[str, int]], progress: Progress, *, remains: bool) -> list[Trace]:
    task = progress.add_task("traces", total=len(names))
    found = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(os.cpu_count() or 1, len(names)), mp_context=context) as pool:
        for trace in pool.map(functools.partial(bench.judge, remains=remains), names, chunksize=2):
            found.append(trace)
            progress.advance(task)
    return found


def result(found: list[Trace], note: str) -> Result:
    return Result(
        benchmark="policy",
        version=figures.version(),
        machine=figures.machine(memcpy.seconds_per_byte()),
        ratios=bench.ratios(found),
        values=bench.values(found),
        notes=[
            note,
            f"ours is {bench.OURS}, as vnpu.yaml has it by default; without prediction: cost_aware in the values",
            "virtual time: the figures are the same on every machine",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policy", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="few traces: it must run, its figures are not judged")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--held-out", action="store_true", help="other seeds: do the figures hold there?")
    seeds.add_argument("--tuning", action="store_true", help="the seeds on which policies may be tuned")
    parser.add_argument(
        "--remains",
        action="store_true",
        help="pages that nobody has needed are not copied again, as in life; not judged: the optimum copies all",
    )
    arguments = parser.parse_args()
    chosen = traces.HELD_OUT if arguments.held_out else traces.TUNING if arguments.tuning else traces.JUDGED
    chosen = chosen[:QUICK] if arguments.quick else chosen
    console = Console(stderr=arguments.json)
    with Progress(console=console) as progress:
        found = run(traces.names(chosen), progress, remains=arguments.remains)
    note = f"seeds {chosen.start} to {chosen.stop - 1} of each of {len(bench.by_family(found))} families"
    measured = result(found, note + (", what remains in free pages is not copied" if arguments.remains else ""))
    figures.show(console, measured, GOALS)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(measured).decode() + "\n")


if __name__ == "__main__":
    main()
