"""`python -m benchmarks.wake`: see the README beside this file."""

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
from benchmarks.figures import Result
from benchmarks.wake.bench import Bench, Samples
from benchmarks.wake.goals import GOALS
from benchmarks.wake.setting import SUBJECT, make_models, prepared_node
from coordinator.demo import memcpy
from coordinator.weights import weight_bytes

PAIRS = 40
"""Single pairs of `switch_over_restore` spread from 0.9 to 1.9: eight gave medians between 1.17 and 1.35 in runs of the
same code."""
QUICK = 2


async def measure(models: Path, progress: Progress, *, quick: bool) -> Samples:
    with tempfile.TemporaryDirectory(prefix="vnpu-wake-") as run_dir:
        async with prepared_node(models, Path(run_dir), progress) as (found, audit):
            bench = Bench(found, audit, weight_bytes(models / SUBJECT), progress, judged=not quick)
            return await bench.run(QUICK if quick else PAIRS)


def result(samples: Samples) -> Result:
    worse = max(samples.free, samples.full, key=lambda pairs: figures.ratio(pairs).median)
    named = {
        "added_ttft_over_memcpy": worse,
        "added_ttft_hot_over_memcpy": samples.hot,
        "added_ttft_free_over_memcpy": samples.free,
        "added_ttft_full_over_memcpy": samples.full,
        "cold_over_wake": samples.cold_over_wake,
        "switch_over_restore": samples.switch,
        "switch_busy_over_restore": samples.switch_busy,
    }
    if samples.recompute_over_keep:
        named["recompute_over_keep"] = samples.recompute_over_keep
    return Result(
        benchmark="wake",
        version=figures.version(),
        machine=figures.machine(memcpy.seconds_per_byte()),
        ratios={name: figures.ratio(pairs) for name, pairs in named.items()},
        values=samples.values,
        notes=[*samples.notes, f"{samples.dropped} pairs dropped because memcpy drifted"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wake", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="fewer pairs: it must run, its figures are not judged")
    parser.add_argument("--models", type=Path, default=Path(".vnpu/bench/models"), help="where models are kept")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    with Progress(console=console) as progress:
        make_models(arguments.models.absolute(), progress)
        samples = asyncio.run(measure(arguments.models.absolute(), progress, quick=arguments.quick))
    measured = result(samples)
    figures.show(console, measured, GOALS)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(measured).decode() + "\n")


if __name__ == "__main__":
    main()
