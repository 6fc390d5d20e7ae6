"""Paired ratios, their interval, and the one JSON object that every benchmark prints."""

from __future__ import annotations

import os
import platform
import random
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

RESAMPLES = 2000
DRIFT = 0.15
"""Pairs during which the memcpy calibrator drifts by more than this share are dropped and counted."""


class Ratio(msgspec.Struct, frozen=True):
    """Median of `n` paired ratios with a bootstrap 95 % interval (percentile method, Efron 1979)."""

    median: float
    ci95: tuple[float, float]
    n: int


class Machine(msgspec.Struct, frozen=True):
    cores: int
    cpu: str
    memcpy_GBps: float
    load: float


class Result(msgspec.Struct, frozen=True):
    """What a benchmark prints with `--json`."""

    benchmark: str
    version: str
    machine: Machine
    ratios: dict[str, Ratio]
    values: dict[str, float]
    notes: list[str]


class Goal(msgspec.Struct, frozen=True):
    """A figure's floor and aim; `at_least` says which way is better."""

    floor: float
    aim: float
    at_least: bool

    def met(self, value: float) -> str:
        if self._good(value, self.aim):
            return "aim"
        return "floor" if self._good(value, self.floor) else "MISSED"

    def _good(self, value: float, bound: float) -> bool:
        return value >= bound if self.at_least else value <= bound


def ratio(pairs: Sequence[float], seed: int = 0) -> Ratio:
    """Summarise paired ratios; raises `ValueError` when there is none."""
    if not pairs:
        raise ValueError("no pair was left: the machine's speed drifted too much; run again when it is quieter")
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    low, high = medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]
    return Ratio(median=statistics.median(pairs), ci95=(low, high), n=len(pairs))


def steady(before: float, after: float) -> bool:
    """Whether the calibrator (seconds per byte) agrees before and after a pair."""
    return abs(before - after) <= DRIFT * min(before, after)


def machine(seconds_per_byte: float) -> Machine:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    cores = len(os.sched_getaffinity(0))
    return Machine(cores=cores, cpu=model, memcpy_GBps=round(1e-9 / seconds_per_byte, 2), load=os.getloadavg()[0])


def version() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def show(console: Console, result: Result, goals: dict[str, Goal]) -> None:
    """The closing table: every ratio and value, with floor, aim and which of them it meets."""
    table = Table(title=f"benchmarks.{result.benchmark} at {result.version}", title_justify="left")
    for column in ("figure", "median", "95 %", "n", "floor", "aim", "meets"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name, figure in result.ratios.items():
        interval = f"{figure.ci95[0]:.3g}–{figure.ci95[1]:.3g}"
        table.add_row(name, f"{figure.median:.3g}", interval, str(figure.n), *_goal(goals.get(name), figure.median))
    for name, value in result.values.items():
        table.add_row(name, f"{value:.4g}", "", "", *_goal(goals.get(name), value))
    console.print(table)
    for note in result.notes:
        console.print(f"- {note}")


def _goal(goal: Goal | None, value: float) -> tuple[str, str, str]:
    if goal is None:
        return "", "", ""
    sign = "≥" if goal.at_least else "≤"
    return f"{sign} {goal.floor:g}", f"{sign} {goal.aim:g}", goal.met(value)
