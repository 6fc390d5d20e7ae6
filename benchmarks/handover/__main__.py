"""`python -m benchmarks.handover`: see the README beside this file."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.progress import Progress

from benchmarks import figures
from benchmarks.figures import RESAMPLES, Ratio, Result
from benchmarks.handover import bench
from benchmarks.handover.bench import FULL, QUICK, Paired, Samples, middle, percentile
from benchmarks.handover.goals import GOALS
from coordinator.demo import memcpy

MS = 1e3


def ratios(samples: Samples) -> dict[str, Ratio]:
    pairs = samples.pairs
    ttl = samples.ttl
    return {
        "order_over_watch_p50": figures.ratio([pair.order / pair.raw for pair in pairs]),
        "order_over_watch_p99": tails(pairs),
        "order_over_watch_remote_p50": figures.ratio([pair.remote / pair.raw for pair in pairs]),
        "takeover_notice_over_ttl": figures.ratio([seconds / ttl for seconds in samples.notice]),
        "takeover_lease_over_ttl": figures.ratio([seconds / ttl for seconds in samples.lease]),
        "failover_over_ttl": figures.ratio([seconds / ttl for seconds in samples.failover]),
    }


def tails(pairs: Sequence[Paired], seed: int = 0) -> Ratio:
    """99th percentile of orders ÷ that of raw puts, bootstrapped over pairs."""

    def tail(chosen: Sequence[Paired]) -> float:
        return percentile([pair.order for pair in chosen], 0.99) / percentile([pair.raw for pair in chosen], 0.99)

    draw = random.Random(seed)
    found = sorted(tail(draw.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    return Ratio(tail(pairs), (found[int(0.025 * RESAMPLES)], found[int(0.975 * RESAMPLES)]), len(pairs))


def values(samples: Samples) -> dict[str, float]:
    raw, order = [pair.raw for pair in samples.pairs], [pair.order for pair in samples.pairs]
    return {
        "transactions_per_switch": middle(samples.transactions),
        "sequential_per_switch": middle(samples.sequential),
        "order_p99_over_watch_p50": percentile(order, 0.99) / middle(raw),
        "watch_p50_ms": MS * middle(raw),
        "watch_p99_ms": MS * percentile(raw, 0.99),
        "order_p50_ms": MS * middle(order),
        "order_p99_ms": MS * percentile(order, 0.99),
        "takeover_notice_ms": MS * middle(samples.notice),
        "takeover_lease_ms": MS * middle(samples.lease),
        "failover_s": middle(samples.failover),
    }


def result(samples: Samples) -> Result:
    return Result(
        benchmark="handover",
        version=figures.version(),
        machine=figures.machine(memcpy.seconds_per_byte()),
        ratios=ratios(samples),
        values=values(samples),
        notes=[
            f"leases of {samples.ttl:g} s; etcd, daemon, coordinators and engines are processes on one machine",
            f"the last switch wrote: {samples.wrote}",
            f"{samples.dropped} pairs dropped because memcpy drifted",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.handover", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--quick", action="store_true", help="fewer pairs: it must run, its figures are not judged")
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    with Progress(console=console) as progress:
        samples = asyncio.run(bench.measure(QUICK if arguments.quick else FULL, progress))
    measured = result(samples)
    figures.show(console, measured, GOALS)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(measured).decode() + "\n")


if __name__ == "__main__":
    main()
