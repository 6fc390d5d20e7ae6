"""`vnpu logs`: what a process of the node says, or has said before the node ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote

from coordinator.cli.tail import Tail, begin_of_last
from coordinator.errors import ConfigError
from coordinator.supervise.layout import RunDir

LOOK_S = 0.1


def names(run_dir: RunDir) -> list[str]:
    """Every process that has a log, or will have one: the node's parts and its models."""
    owner = run_dir.owner()
    run = run_dir.run_of(owner) if owner else None
    there = {unquote(path.name.removesuffix(".log")) for path in run_dir.logs.glob("*.log")}
    return sorted(there | {process.name for process in run.processes} if run else there)


def log_of(run_dir: RunDir, name: str, *, before: bool) -> Path:
    """The log of the process `name`, or of the node itself where it is empty; `before`: of the run before this one.

    Raises ConfigError for a name that nothing has."""
    path = run_dir.log(name) if name else run_dir.up_log
    path = path.with_name(path.name + ".1") if before else path
    if path.exists() or (not before and name in names(run_dir)):
        return path
    known = ", ".join(names(run_dir)) or "none, no node has run here; --run-dir DIR names another folder"
    if not name:
        raise ConfigError("a node in the foreground has no log of its own", remedy=f"name a process: {known}")
    raise ConfigError(f"there is no log of {name}{' before this run' if before else ''}", remedy=f"known: {known}")


def logs(run_dir: RunDir, name: str, *, lines: int | None, follow: bool, before: bool) -> int:
    """Prints the last `lines` lines (None: all), and with `follow` what comes, until the node ends."""
    path = log_of(run_dir, name, before=before)
    log = Tail(path, 0 if lines is None else begin_of_last(path, lines))
    if follow and not before:
        _follow(log, lambda: run_dir.owner() != 0)
    _print(log.rest())
    return 0


def _follow(log: Tail, runs: Callable[[], bool]) -> None:
    while runs():
        _print(log.read())
        time.sleep(LOOK_S)


def _print(lines: Sequence[str]) -> None:
    if lines:
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
