"""`vnpu simulate`: a trace, a fleet, some policies; the real scheduler in virtual time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from coordinator.core.policies.registry import POLICIES, make
from coordinator.errors import ConfigError, VnpuError
from coordinator.simulate import fleet as fleets
from coordinator.simulate import generate, trace
from coordinator.simulate.generate import FAMILIES, Workload
from coordinator.simulate.plot import draw
from coordinator.simulate.report import Comparison, Outcome, compare
from coordinator.simulate.world import World
from coordinator.sizes import show_duration, show_size

MOST_REQUESTS, MOST_MODELS = 1_000_000, 1_000
PREDICT = "+predict"
"""After a policy's name: with predictive wake."""


class Asked(msgspec.Struct, frozen=True):
    """What the command line asks for."""

    trace: str
    policies: Sequence[str]
    fleet: Path | None = None
    requests: int = 200
    models: int = 8
    as_json: bool = False
    plot: Path | None = None
    write: Path | None = None


def simulate(asked: Asked) -> int:
    """The exit code. Raises ConfigError for what cannot be simulated."""
    for name in asked.policies:
        make(name.removesuffix(PREDICT))
    _bounded("--requests", asked.requests, MOST_REQUESTS)
    _bounded("--models", asked.models, MOST_MODELS)
    if asked.plot is not None and asked.plot.suffix.lower() != ".svg":
        raise ConfigError(f"--plot: {asked.plot} is no name for an SVG picture", remedy="let it end in .svg")
    work = workload(asked)
    if asked.write is not None:
        _saved(asked.write, lambda path: trace.write(path, work.requests))
    console = Console(stderr=asked.as_json)
    with Progress(console=console, transient=True) as progress:
        runs = [(name, run(work, name, progress)) for name in asked.policies]
    found = compare(work.fleet, runs)
    if asked.plot is not None:
        picture = draw(found, {name: world.jobs for name, world in runs})
        _saved(asked.plot, lambda path: path.write_text(picture, encoding="utf-8"))
    if asked.as_json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        show(console, found)
    return 0


def workload(asked: Asked) -> Workload:
    """The trace and the fleet: both generated, or the trace read and the fleet with it."""
    family, _, seed = asked.trace.partition(":")
    if family in FAMILIES:
        number = _seed(seed)
        if asked.fleet is None:
            return generate.workload(family, number, requests=asked.requests, models=asked.models)
        fleet = fleets.load(asked.fleet, os.environ)
        return Workload(
            fleet, generate.trace(family, Random(f"{family}:{number}"), sorted(fleet.models), asked.requests)
        )
    if asked.fleet is None:
        raise ConfigError(
            f"{asked.trace} is no generator, and a trace needs a fleet",
            remedy=f"name one by --fleet FILE, or a generator: {', '.join(FAMILIES)}",
        )
    fleet = fleets.load(asked.fleet, os.environ)
    return Workload(fleet, trace.read(Path(asked.trace), fleet.models))


def _bounded(option: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise ConfigError(f"{option}: {value} is not between 1 and {most}", remedy="name another number")


def _seed(text: str) -> int:
    try:
        return int(text or 0)
    except ValueError:
        raise ConfigError(f"{text!r} is no seed", remedy="write a whole number, as tail:7") from None


def run(work: Workload, name: str, progress: Progress) -> World:
    """One policy's run, with its own progress bar."""
    task = progress.add_task(name, total=len(work.requests))
    predict = name.endswith(PREDICT)
    world = World(work.fleet, work.requests, make(name.removesuffix(PREDICT)), predict=predict)
    world.run(lambda done: progress.update(task, completed=done))
    return world


def show(console: Console, found: Comparison) -> None:
    """A table, a column a policy."""
    kind = "optimum" if found.exact else "lower bound of the optimum"
    title = f"{found.requests} requests in {show_duration(found.seconds)}; {kind}: {found.optimum_s:.1f} s of restores"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for outcome in found.outcomes:
        table.add_column(outcome.policy, justify="right")
    columns = [_rows(outcome, found.exact) for outcome in found.outcomes]
    for label in columns[0] if columns else ():
        table.add_row(label, *(column[label] for column in columns))
    console.print(table)


def _rows(found: Outcome, exact: bool) -> dict[str, str]:
    return {
        "restore time waited for": f"{found.cost_s:.1f} s",
        "÷ optimum" if exact else "÷ bound": f"{found.ratio:.2f}",
        "found resident": f"{found.hit_rate:.0%}",
        "TTFT warm p50, p99 (s)": f"{found.ttft_warm_p50:.2f}, {found.ttft_warm_p99:.2f}",
        "TTFT cold p50, p99 (s)": f"{found.ttft_cold_p50:.2f}, {found.ttft_cold_p99:.2f}",
        "within objective": "-" if found.slo is None else f"{found.slo:.0%}",
        "longest wait": f"{found.max_wait_s:.2f} s",
        "swaps an hour": f"{found.swaps_per_hour:.1f}",
        "bytes moved": show_size(found.bytes_moved),
        "back within 30 s": str(found.thrash),
        "predicted, in vain": f"{found.predicted}, {found.regretted}",
        "unanswered": str(found.unanswered),
    }


def _saved(path: Path, write: Callable[[Path], object]) -> None:
    try:
        write(path)
    except OSError as error:
        raise VnpuError(f"{path} cannot be written: {error.strerror}", remedy="name another file") from None


def policies(text: str) -> list[str]:
    """`a,b` as names; empty: all."""
    return [name.strip() for name in text.split(",") if name.strip()] or list(POLICIES)
