"""`python -m benchmarks.reality`: see the README beside this file."""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
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


def p50(told: list[Told]) -> float:
    return statistics.median(each.ttft for each in told) if told else float("nan")


def compared(samples: Samples, of: Callable[[float], float]) -> Ratio:
    """`of` the ratio of medians, bootstrapped over requests of both."""
    draw = random.Random(0)
    pairs = list(zip(samples.simulated, samples.real, strict=True))

    def figure(chosen: list[tuple[Told, Told]]) -> float:
        return of(p50([simulated for simulated, _ in chosen]) / p50([real for _, real in chosen]))

    drawn = sorted(figure(draw.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return Ratio(figure(pairs), (drawn[int(0.025 * RESAMPLES)], drawn[int(0.975 * RESAMPLES)]), len(pairs))


def result(samples: Samples, seconds: float) -> Result:
    values = {
        f"{who}_{kind}_p50_ms": MS * p50([one for one in told if kind == "all" or one.cold == (kind == "asleep")])
        for who, told in (("sim", samples.simulated), ("real", samples.real))
        for kind in ("all", "awake", "asleep")
    }
    values |= {
        "sim_restores": samples.restores[0],
        "real_restores": samples.restores[1],
        "sim_copied_gb": samples.copied[0] / 1e9,
        "real_copied_gb": samples.copied[1] / 1e9,
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
