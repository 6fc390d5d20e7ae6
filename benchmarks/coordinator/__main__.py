"""`python -m benchmarks.coordinator`: see the README beside this file."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys

import msgspec
from rich.console import Console
from rich.progress import Progress

from benchmarks import figures
from benchmarks.coordinator import fleet, registered, steady
from benchmarks.coordinator.fleet import Spent
from benchmarks.coordinator.goals import GOALS
from benchmarks.figures import Ratio, Result
from coordinator.demo import memcpy

SMALL, MIDDLE, LARGE = 10, 1000, 10_000
HOUR_S = 3600.0
US = 1e6


class Plan(msgspec.Struct, frozen=True):
    """Pairs of small and large fleets; requests in each run of a pair, and a second in the virtual hour; seconds for
    which writes are counted (memory settles for a sixth of that)."""

    pairs: int
    requests: int
    rate: float
    seconds: float


FULL = Plan(20, 2000, 10.0, 60.0)
QUICK = Plan(2, 200, 0.2, 3.0)


class Pairs(msgspec.Struct):
    """Ratios of median decision times to that of the small fleet in the same pair, and those times."""

    large: list[float] = []
    middle: list[float] = []
    small_s: list[float] = []
    large_s: list[float] = []
    dropped: int = 0


def decide(plan: Plan, progress: Progress) -> Pairs:
    """The same requests to the same ten engines of one device, so that decisions are the same; only the fleet around
    them is larger."""
    found = Pairs()
    task = progress.add_task("decisions", total=plan.pairs)
    for pair in range(plan.pairs):
        before = memcpy.seconds_per_byte(64 << 20, 2)
        small, middle, large = (_median(engines, plan.requests, pair) for engines in (SMALL, MIDDLE, LARGE))
        progress.advance(task)
        if not figures.steady(before, memcpy.seconds_per_byte(64 << 20, 2)):
            found.dropped += 1
            continue
        found.large.append(large / small)
        found.middle.append(middle / small)
        found.small_s.append(small)
        found.large_s.append(large)
    return found


def _median(engines: int, count: int, seed: int) -> float:
    """Seconds of a decision. One request in 5 s comes."""
    spent = fleet.run(engines, fleet.requests(SMALL, count, 5.0 * count, seed))
    return statistics.median(spent.decisions)


def hour(plan: Plan, progress: Progress) -> Spent:
    asked = fleet.requests(LARGE, int(plan.rate * HOUR_S), HOUR_S, 0)
    task = progress.add_task("a virtual hour of 10,000 engines", total=len(asked))
    return fleet.run(LARGE, asked, lambda done: progress.update(task, completed=done))


async def live(plan: Plan, progress: Progress) -> dict[str, float]:
    task = progress.add_task("memory, writes", total=2)
    memory = await registered.rss_mb(1000, plan.seconds / 6)
    progress.advance(task)
    idle, busy = await steady.writes_per_second(plan.seconds)
    progress.advance(task)
    return {"rss_mb_1000": memory, "writes_per_engine_second": idle, "writes_per_busy_engine_second": busy}


def result(pairs: Pairs, spent: Spent, lived: dict[str, float]) -> Result:
    ratios: dict[str, Ratio] = {
        "decision_10k_over_10": figures.ratio(pairs.large),
        "decision_1k_over_10": figures.ratio(pairs.middle),
    }
    values = {
        "decision_10_us": US * statistics.median(pairs.small_s),
        "decision_10k_us": US * statistics.median(pairs.large_s),
        "events_per_second": spent.events / spent.seconds,
        **lived,
        "hour_decision_us": US * statistics.median(spent.decisions),
        "hour_wall_s": spent.wall,
        "hour_events": float(spent.events),
        "hour_requests": float(spent.requests),
        "hour_switches": float(spent.switches),
        "hour_unanswered": float(spent.unanswered),
    }
    return Result(
        benchmark="coordinator",
        version=figures.version(),
        machine=figures.machine(memcpy.seconds_per_byte()),
        ratios=ratios,
        values=values,
        notes=[
            "fleets in virtual time through the real scheduler; memory and writes on a real etcd",
            f"{pairs.dropped} pairs dropped because memcpy drifted",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coordinator", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="fewer pairs: it must run, its figures are not judged")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    console = Console(stderr=arguments.json)
    with Progress(console=console) as progress:
        pairs = decide(plan, progress)
        spent = hour(plan, progress)
        lived = asyncio.run(live(plan, progress))
    measured = result(pairs, spent, lived)
    figures.show(console, measured, GOALS)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(measured).decode() + "\n")


if __name__ == "__main__":
    main()
