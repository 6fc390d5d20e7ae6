"""`python -m benchmarks.reality`: see the README beside this file."""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from benchmarks import figures
from benchmarks.figures import RESAMPLES, Ratio, Result
from benchmarks.reality.bench import Bench, Samples, Told
from benchmarks.reality.goals import GOALS
from benchmarks.reality.setting import make_models, prepared_node
from coordinator.demo import memcpy

TRACE_S, PRACTICE_S = 300.0, 75.0
QUICK_S = 15.0
MS = 1e3


async def measure(seconds: float, practice: float, rounds: int, models: Path, progress: Progress) -> Samples:
    with tempfile.TemporaryDirectory(prefix="vnpu-reality-") as run_dir:
        async with prepared_node(models, Path(run_dir), progress) as (found, audit, store):
            return await Bench(found, audit, store, progress).run(seconds, practice, rounds)


def p50(told: Iterable[Told]) -> float:
    seconds = [each.ttft for each in told]
    return statistics.median(seconds) if seconds else float("nan")


def compared(samples: Samples, of: Callable[[float], float]) -> Ratio:
    """`of` the ratio of medians, bootstrapped over requests; of a request all draws go together."""
    draw = random.Random(0)
    requests = list(zip(samples.real.told, *(replay.told for replay in samples.simulated), strict=True))

    def figure(chosen: Sequence[tuple[Told, ...]]) -> float:
        return of(p50(each for one in chosen for each in one[1:]) / p50(one[0] for one in chosen))

    drawn = sorted(figure(draw.choices(requests, k=len(requests))) for _ in range(RESAMPLES))
    return Ratio(figure(requests), (drawn[int(0.025 * RESAMPLES)], drawn[int(0.975 * RESAMPLES)]), len(requests))


def result(samples: Samples, seconds: float) -> Result:
    values: dict[str, float] = {}
    for who, replays in (("sim", samples.simulated), ("real", [samples.real])):
        told = [each for replay in replays for each in replay.told]
        values[f"{who}_all_p50_ms"] = MS * p50(told)
        values[f"{who}_awake_p50_ms"] = MS * p50(each for each in told if not each.cold)
        values[f"{who}_asleep_p50_ms"] = MS * p50(each for each in told if each.cold)
        values[f"{who}_asleep_share"] = statistics.fmean(each.cold for each in told)
        values[f"{who}_restores"] = statistics.fmean(len(replay.copied) for replay in replays)
        values[f"{who}_copied_gb"] = statistics.fmean(sum(replay.copied) for replay in replays) / 1e9
    values |= {
        "fitted_gb_s": samples.bandwidth / 1e9,
        "memcpy_measuring_gb_s": 1e-9 / samples.memcpy[0],
        "memcpy_trace_gb_s": 1e-9 / samples.memcpy[1],
    }
    return Result(
        benchmark="reality",
        version=figures.version(),
        machine=figures.machine(memcpy.seconds_per_byte()),
        ratios={
            "sim_over_real_p50": compared(samples, lambda ratio: ratio),
            "off_by_p50": compared(samples, lambda ratio: max(ratio, 1 / ratio)),
        },
        values=values,
        notes=[
            f"a trace of {seconds:g} s; what the simulator is told was measured before and after, on the same engines"
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reality", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="a short trace: it must run, its figures are not judged")
    parser.add_argument("--seconds", type=float, default=TRACE_S, help="of the trace (default: %(default)g)")
    parser.add_argument("--models", type=Path, default=Path(".vnpu/bench/models"), help="where models are kept")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    seconds, practice = (QUICK_S, QUICK_S) if arguments.quick else (arguments.seconds, PRACTICE_S)
    with Progress(console=console) as progress:
        make_models(arguments.models.absolute(), progress)
        rounds = 1 if arguments.quick else 2
        samples = asyncio.run(measure(seconds, practice, rounds, arguments.models.absolute(), progress))
    measured = result(samples, seconds)
    figures.show(console, measured, GOALS)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(measured).decode() + "\n")


if __name__ == "__main__":
    main()
