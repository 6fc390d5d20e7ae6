"""`python -m benchmarks.restore`: see the README beside this file."""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys

import msgspec
from rich.console import Console
from rich.progress import Progress

from benchmarks import figures
from benchmarks.figures import Result
from benchmarks.restore.goals import GOALS
from benchmarks.restore.memory import (
    Pool,
    deviation,
    fresh,
    private_huge,
    private_small,
    seconds,
    shared_small,
    stream,
)
from coordinator.demo import memcpy
from engine_patch.host_memory import Mapping

GIB = 1 << 30
FEW, MANY = 10, 10_000
"""Tensors."""
ROUNDS = 5


class Bench:
    """`size` bytes for the pairs; `most` is the largest restore that is timed."""

    def __init__(self, size: int, most: int, progress: Progress) -> None:
        self._size = size
        self._most = most
        self._progress = progress
        self._master = Mapping(most)
        self._warm = Mapping(size)
        self.pool = Pool(most)
        self.ratios: dict[str, list[float]] = {}
        self.values: dict[str, float] = {}
        self.dropped = 0
        with self.pool.mapped(most):
            ctypes.memset(self.pool.base, 1, most)

    def run(self, pairs: int) -> None:
        task = self._progress.add_task("pairs", total=pairs)
        remaps, unmaps, wipes = [], [], []
        for _ in range(pairs):
            remap, unmap = self._pair()
            remaps.append(remap)
            unmaps.append(unmap)
            wipes.append(seconds(lambda: self.pool.wipe(self._size)))
            self._progress.advance(task)
        self.values["remap_ms_per_gib"] = statistics.median(remaps) * 1e3 * GIB / self._size
        self.values["unmap_ms_per_gib"] = statistics.median(unmaps) * 1e3 * GIB / self._size
        self.values["wipe_ms_per_gib"] = statistics.median(wipes) * 1e3 * GIB / self._size
        self.values["linearity_bytes"] = self._linearity()

    def _pair(self) -> tuple[float, float]:
        """Seconds to map and to unmap; the ratios are noted unless memcpy drifts meanwhile."""
        size, master, pool = self._size, self._master, self.pool
        before = self._memcpy()
        limit = seconds(lambda: stream(self._warm.address, master, size))
        remap = seconds(lambda: pool.map(size))
        copied = seconds(lambda: stream(pool.base, master, size))
        unmap = seconds(lambda: pool.unmap(size))
        pooled = remap + copied
        with pool.mapped(size):
            whole = size // MANY * MANY
            few = seconds(lambda: stream(pool.base, master, whole, FEW))
            many = seconds(lambda: stream(pool.base, master, whole, MANY))
        shared, private, large = (fresh(master, size, make) for make in (shared_small, private_small, private_huge))
        after = self._memcpy()
        if not figures.steady(before, after):
            self.dropped += 1
            return remap, unmap
        found = {
            "pooled_over_limit": limit / pooled,
            "pooled_over_memcpy": (before + after) / 2 / pooled,
            "pooled_over_fresh_4k": shared / pooled,
            "pooled_over_private_4k": private / pooled,
            "pooled_over_fresh_huge": large / pooled,
            "growth_tensors": many / few,
        }
        for name, value in found.items():
            self.ratios.setdefault(name, []).append(value)
        return remap, unmap

    def _memcpy(self) -> float:
        """Seconds for one thread's memcpy of the same bytes."""
        size = self._size
        return seconds(lambda: ctypes.memmove(self._warm.address, self._master.address, size))

    def _linearity(self) -> float:
        sizes = [64 << 20]
        while sizes[-1] < self._most:
            sizes.append(sizes[-1] * 2)
        return deviation(sizes, [min(self._restore(size) for _ in range(ROUNDS)) for size in sizes])

    def _restore(self, size: int) -> float:
        def work() -> None:
            self.pool.map(size)
            stream(self.pool.base, self._master, size)

        taken = seconds(work)
        self.pool.unmap(size)
        return taken


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restore", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument(
        "--quick", action="store_true", help="less and smaller: it must run, its figures are not judged"
    )
    arguments = parser.parse_args()
    console = Console(stderr=arguments.json)
    size, most, pairs = (128 << 20, 256 << 20, 5) if arguments.quick else (GIB, 4 * GIB, 24)
    with Progress(console=console) as progress:
        bench = Bench(size, most, progress)
        bench.run(pairs)
    pages = "huge pages: tmpfs" if bench.pool.huge else "4 KiB pages: the system gives no huge ones"
    bench.pool.close()
    measured = Result(
        benchmark="restore",
        version=figures.version(),
        machine=figures.machine(memcpy.seconds_per_byte(256 << 20)),
        ratios={name: figures.ratio(pairs) for name, pairs in bench.ratios.items()},
        values={"bytes": float(size), **bench.values},
        notes=[pages, f"{bench.dropped} pairs dropped because memcpy drifted"],
    )
    figures.show(console, measured, GOALS)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(measured).decode() + "\n")


if __name__ == "__main__":
    main()
