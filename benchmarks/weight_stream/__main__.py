"""`python -m benchmarks.weight_stream`: see the README beside this file."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from benchmarks import figures
from benchmarks.figures import Result
from benchmarks.weight_stream import engines
from benchmarks.weight_stream.bench import SHARE, Samples, chains, checked_over_raw
from benchmarks.weight_stream.chart import draw
from benchmarks.weight_stream.engines import FULL, QUICK, Found
from benchmarks.weight_stream.goals import GOALS
from coordinator.demo import memcpy

SIZE, CHAIN_SIZE = 1 << 30, 256 << 20
QUICK_SIZE, QUICK_CHAIN_SIZE = 256 << 20, 64 << 20


def measure(*, quick: bool, progress: Progress) -> Samples:
    samples = Samples()
    pairs, size = (3, QUICK_SIZE) if quick else (40, SIZE)
    rate = asyncio.run(checked_over_raw(pairs, size, samples, progress, judged=not quick))
    samples.values["raw_GBps"] = rate / 1e9
    chains(1 if quick else 5, 4 if quick else 8, QUICK_CHAIN_SIZE if quick else CHAIN_SIZE, rate, samples, progress)
    return samples


def of_engines(found: Found) -> dict[str, figures.Ratio]:
    """Ratios of those that were measured; no pair was left: the machine was too uneven."""
    measured = {
        "source_tpot_inflation": found.tpot,
        "ready_stream_over_disk_warm": found.warm,
        "ready_stream_over_disk_cold": found.cold,
    }
    return {name: figures.ratio(pairs) for name, pairs in measured.items() if pairs}


def by_caches(samples: Samples) -> dict[str, figures.Ratio]:
    """The copy of mapped memory apart for how the processors lay, where there were pairs."""
    measured = {
        "local_copy_over_tcp_one_cache": samples.one_cache,
        "local_copy_over_tcp_two_caches": samples.two_caches,
    }
    return {name: figures.ratio(pairs) for name, pairs in measured.items() if pairs}


def dropped(samples: Samples) -> str:
    """How many pairs of one to one, and why."""
    told = ", ".join(f"{count} because {why}" for why, count in sorted(samples.dropped.items()))
    return f"one to one: pairs dropped: {told or 'none'}"


def result(samples: Samples, found: Found) -> Result:
    return Result(
        benchmark="weight_stream",
        version=figures.version(),
        machine=figures.machine(memcpy.seconds_per_byte()),
        ratios={
            "tcp_over_raw": figures.ratio(samples.tcp),
            "local_over_tcp": figures.ratio(samples.shared),
            "local_copy_over_tcp": figures.ratio(samples.local),
            **by_caches(samples),
            "four_over_one": figures.ratio(samples.four),
            **of_engines(found),
        },
        values={
            **samples.values,
            **{f"ready_{kind}_s": statistics.median(each) for kind, each in found.ready.items()},
            **({"source_stream_GBps": statistics.median(found.rates) / 1e9} if found.rates else {}),
        },
        notes=[
            dropped(samples),
            f"loopback; with several starters every endpoint sends and receives at most 1/{SHARE} of the bare loop",
            "huge pages: tmpfs" if samples.huge else "4 KiB pages: the system gives no huge ones",
            f"of real engines: {found.dropped} pairs dropped because memcpy drifted, in {found.slow} the stream was"
            " slower than 0.5 GB/s",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weight_stream", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="fewer pairs: it must run, its figures are not judged")
    parser.add_argument("--no-engines", action="store_true", help="leave out what needs real engines")
    parser.add_argument("--models", type=Path, default=Path(".vnpu/bench/models"), help="where models are kept")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="time against the number of starters, as SVG")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    with Progress(console=console) as progress:
        samples = measure(quick=arguments.quick, progress=progress)
        found = Found()
        if not arguments.no_engines:
            found = asyncio.run(engines.measure(QUICK if arguments.quick else FULL, arguments.models, progress))
    measured = result(samples, found)
    if arguments.plot:
        arguments.plot.write_text(draw(samples.starters))
    figures.show(console, measured, GOALS)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(measured).decode() + "\n")


if __name__ == "__main__":
    main()
