"""`python -m tests.helpers.whole SEEDS`: that many histories on all cores. Prints the means; exits with 1 and a minimal
history where one goes wrong. `--first N` starts at seed N."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

import msgspec

from tests.helpers.whole.machine import Violated
from tests.helpers.whole.plan import history, planned
from tests.helpers.whole.shrink import minimal, told
from tests.helpers.whole.world import World

BATCH = 25


class Sums(msgspec.Struct):
    """Of some seeds; `wrong`: the first that failed and why."""

    seeds: int = 0
    events: int = 0
    faults: int = 0
    switches: int = 0
    wrong: tuple[int, str] | None = None

    def add(self, other: Sums) -> None:
        self.seeds += other.seeds
        self.events += other.events
        self.faults += other.faults
        self.switches += other.switches
        self.wrong = min(filter(None, (self.wrong, other.wrong)), default=None)

    def means(self) -> str:
        n = max(1, self.seeds)
        each = f"{self.events / n:.0f} events, {self.faults / n:.1f} faults, {self.switches / n:.1f} switches"
        return f"{self.seeds} seeds; a seed has {each} (means)"


def batch(first: int, count: int) -> Sums:
    """These seeds one after another, until one goes wrong."""
    sums = Sums()
    for seed in range(first, first + count):
        try:
            sums.add(_of(history(planned(seed))))
        except Violated as violated:
            sums.wrong = (seed, str(violated))
            break
        if not gc.isenabled():  # a world is full of cycles, and over: what it was is at hand for the next one
            gc.collect()
    return sums


def _of(world: World) -> Sums:
    return Sums(1, world.events, world.faults, world.switches)


def _alone() -> None:
    """A process that runs nothing but histories: what is there already is no history's garbage, and that is collected
    when the history is over."""
    gc.disable()
    gc.freeze()


def many(first: int, seeds: int, jobs: int) -> Sums:
    """All of them, or until one goes wrong."""
    sums, began = Sums(), time.monotonic()
    with ProcessPoolExecutor(jobs, initializer=_alone) as pool:
        starts = range(first, first + seeds, BATCH)
        for done in as_completed([pool.submit(batch, at, min(BATCH, first + seeds - at)) for at in starts]):
            sums.add(done.result())
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{sums.seeds} of {seeds} seeds, {time.monotonic() - began:.0f} s ")
            if sums.wrong is not None:
                pool.shutdown(cancel_futures=True)
                break
    return sums


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.whole", description=__doc__)
    parser.add_argument("seeds", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--brief", action="store_true", help="do not look for the minimal history")
    given = parser.parse_args()
    began = time.monotonic()
    sums = many(given.first, given.seeds, given.jobs)
    sys.stdout.write(f"{sums.means()}; {time.monotonic() - began:.0f} s\n")
    if sums.wrong is None:
        return 0
    seed, wrong = sums.wrong
    sys.stdout.write(f"seed {seed}: {wrong}\n")
    if not given.brief:
        sys.stdout.write(told(minimal(planned(seed), wrong)) + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
