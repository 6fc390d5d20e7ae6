"""`python -m benchmarks [--quick] [NAME …]`: runs benchmarks in turn, renders `benchmarks/RESULTS.md` and the
table of README."""

from __future__ import annotations

import argparse
import datetime
import importlib
import subprocess
import sys
from pathlib import Path

import msgspec
from rich.console import Console

from benchmarks import headline
from benchmarks.figures import Goal, Result

FOLDER = Path(__file__).parent
HEAD = "| benchmark | figure | value | 95 % | n | floor | aim | meets |\n|---|---|---|---|---|---|---|---|\n"


def names() -> list[str]:
    return sorted(found.parent.name for found in FOLDER.glob("*/__main__.py"))


def run(name: str, *, quick: bool) -> Result:
    """One benchmark as a process of its own; raises `CalledProcessError` when it fails."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout, type=Result)


def render(results: list[Result], date: str) -> str:
    """The page: machine, command and a row a figure."""
    machine = results[0].machine
    lines = [
        "# Measured results\n",
        f"{date}, {machine.cores} cores of {machine.cpu}, one-thread memcpy {machine.memcpy_GBps} GB/s, "
        f"version {results[0].version}; host driver. Every figure is a ratio to a limit or a peer of the same run "
        "(`benchmarks/README.md`). Made by `make bench`.\n",
        HEAD + "".join(row for result in results for row in _rows(result)),
    ]
    notes = [f"- {result.benchmark}: {note}" for result in results for note in result.notes]
    return "\n".join([*lines, *notes]) + "\n"


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which ones (default: all of {', '.join(names())})")
    parser.add_argument("--quick", action="store_true", help="fewer pairs; RESULTS.md is left as it is")
    arguments = parser.parse_args()
    console = Console()
    results = []
    for name in arguments.names or names():
        console.rule(name)
        results.append(run(name, quick=arguments.quick))
    page = render(results, datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"))
    console.print(page, markup=False)
    if not arguments.quick:
        (FOLDER / "RESULTS.md").write_text(page)
        headline.write()


if __name__ == "__main__":
    main()
