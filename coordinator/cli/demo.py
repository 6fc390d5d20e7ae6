"""`vnpu demo`: set up, run, report."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from coordinator.demo import report as reports
from coordinator.demo.prepare import Workspace, prepare
from coordinator.demo.reference import Reference
from coordinator.demo.report import Report
from coordinator.demo.run import run


def demo(root: Path, *, as_json: bool) -> int:
    """Run the demo below `root`; returns the exit code: 0 only if outputs were identical and every invariant held."""
    workspace = Workspace(root)
    console = Console(stderr=as_json)
    references = _prepare(workspace, console)
    try:
        report = asyncio.run(_ended_by_signals(run(workspace, references, console)))
    except asyncio.CancelledError:
        console.print("ended before its end; everything it had started is stopped")
        return 130
    encoded = msgspec.json.format(msgspec.json.encode(report))
    workspace.report.write_bytes(encoded)
    reports.show(console, report)
    if as_json:
        sys.stdout.write(encoded.decode() + "\n")
    console.print(f"report: {workspace.report}")
    return 0 if report.passed else 1


async def _ended_by_signals(play: Coroutine[Any, Any, Report]) -> Report:
    """SIGTERM and SIGHUP end it in order, as Ctrl-C does: what it started must not stay."""
    task = asyncio.ensure_future(play)
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


def _prepare(workspace: Workspace, console: Console) -> dict[str, Reference]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        return prepare(workspace, progress)
