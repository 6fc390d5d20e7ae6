"""`python -m benchmarks.weight_stream`: see the README beside this file."""

from __future__ import annotations

import argparse
import sys

import msgspec
from rich.console import Console
from rich.progress import Progress

from benchmarks import figures
from benchmarks.figures import Result
from benchmarks.weight_stream.bench import SHARE, Samples, chains, checked_over_raw
from benchmarks.weight_stream.goals import GOALS
from coordinator.demo import memcpy

SIZE, CHAIN_SIZE = 1 << 30, 256 << 20
QUICK_SIZE, QUICK_CHAIN_SIZE = 256 << 20, 64 << 20


def measure(*, quick: bool, progress: Progress) -> Samples:
    samples = Samples()
    pairs, size = (3, QUICK_SIZE) if quick else (20, SIZE)
    rate = checked_over_raw(pairs, size, samples, progress, judged=not quick)
    samples.values["raw_GBps"] = rate / 1e9
    chains(1 if quick else 5, 4 if quick else 8, QUICK_CHAIN_SIZE if quick else CHAIN_SIZE, rate, samples, progress)
    return samples


def result(samples: Samples) -> Result:
    return Result(
        benchmark="weight_stream",
        version=figures.version(),
        machine=figures.machine(memcpy.seconds_per_byte()),
        ratios={
            "tcp_over_raw": figures.ratio(samples.tcp),
            "local_over_tcp": figures.ratio(samples.local),
            "four_over_one": figures.ratio(samples.four),
        },
        values=samples.values,
        notes=[
            f"{samples.dropped} pairs dropped because memcpy drifted",
            f"loopback; with several starters every endpoint sends and receives at most 1/{SHARE} of the bare loop",
            "not measured: source_tpot_inflation, ready_stream_over_disk",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weight_stream", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="fewer pairs: it must run, its figures are not judged")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    with Progress(console=console) as progress:
        samples = measure(quick=arguments.quick, progress=progress)
    measured = result(samples)
    figures.show(console, measured, GOALS)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(measured).decode() + "\n")


if __name__ == "__main__":
    main()
