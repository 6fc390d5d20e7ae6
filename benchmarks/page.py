"""The page of results: `benchmarks/RESULTS.md`, made from what each benchmark printed when it last ran as a whole.

`python -m benchmarks.page` makes it anew from `benchmarks/results/NAME.json`, and README's table from it.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import msgspec

from benchmarks import headline
from benchmarks.figures import Goal, Result

FOLDER = Path(__file__).parent
PAGE = FOLDER / "RESULTS.md"
KEPT = FOLDER / "results"
INTRODUCTION = """# Measured results

Host driver. Every figure is a ratio to a limit or a peer of the same run ([how](README.md)). Made by `make bench` from
`benchmarks/results`, where each benchmark's last whole run is kept.

"""
RUNS = "| benchmark | date | version | machine | one-thread memcpy, GB/s |\n|---|---|---|---|---|\n"
FIGURES = "\n| benchmark | figure | value | 95 % | n | floor | aim | meets |\n|---|---|---|---|---|---|---|---|\n"


class Run(msgspec.Struct, frozen=True):
    """A benchmark's result and the day of it (ISO 8601)."""

    date: str
    result: Result


def keep(run: Run, folder: Path = KEPT) -> None:
    """In the place of the one before."""
    folder.mkdir(exist_ok=True)
    (folder / f"{run.result.benchmark}.json").write_bytes(msgspec.json.format(msgspec.json.encode(run)) + b"\n")


def kept(folder: Path = KEPT) -> list[Run]:
    """By name. Raises `msgspec.ValidationError` where a file holds something else."""
    return [msgspec.json.decode(file.read_bytes(), type=Run) for file in sorted(folder.glob("*.json"))]


def render(runs: list[Run]) -> str:
    """A row a run, a row a figure, and the notes."""
    notes = [f"- {run.result.benchmark}: {note}\n" for run in runs for note in run.result.notes]
    rows = [row for run in runs for row in _rows(run.result)]
    return "".join([INTRODUCTION, RUNS, *map(_run, runs), FIGURES, *rows, "\n", *notes])


def write() -> None:
    """The page, and README after it."""
    PAGE.write_text(render(kept()))
    headline.write()


def _run(run: Run) -> str:
    found, machine = run.result, run.result.machine
    where, speed = f"{machine.cores} cores of {machine.cpu}", machine.memcpy_GBps or "not kept"
    return f"| {found.benchmark} | {run.date} | {found.version} | {where} | {speed} |\n"


def _rows(result: Result) -> list[str]:
    goals: dict[str, Goal] = importlib.import_module(f"benchmarks.{result.benchmark}.goals").GOALS
    rows = [
        (name, figure.median, f"{figure.ci95[0]:.3g}–{figure.ci95[1]:.3g}", str(figure.n))
        for name, figure in result.ratios.items()
    ]
    rows += [(name, value, "", "") for name, value in result.values.items()]
    return [_row(result.benchmark, *row, goals.get(row[0])) for row in rows]


def _row(benchmark: str, name: str, value: float, interval: str, n: str, goal: Goal | None) -> str:
    sign = "≥" if goal and goal.at_least else "≤"
    told = (f"{sign} {goal.floor:g}", f"{sign} {goal.aim:g}", goal.met(value)) if goal else ("", "", "")
    return f"| {benchmark} | `{name}` | {value:.3g} | {interval} | {n} | {' | '.join(told)} |\n"


if __name__ == "__main__":
    write()
