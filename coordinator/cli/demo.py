"""`vnpu demo`: set up, run, report."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from coordinator.demo import report as reports
from coordinator.demo.prepare import Workspace, prepare
from coordinator.demo.reference import Reference
from coordinator.demo.run import run


def demo(root: Path, *, as_json: bool) -> int:
    """Run the demo below `root`; returns the exit code: 0 only if outputs were identical and every invariant held."""
    workspace = Workspace(root)
    console = Console(stderr=as_json)
    references = _prepare(workspace, console)
    report = asyncio.run(run(workspace, references, console))
    encoded = msgspec.json.format(msgspec.json.encode(report))
    workspace.report.write_bytes(encoded)
    reports.show(console, report)
    if as_json:
        sys.stdout.write(encoded.decode() + "\n")
    console.print(f"report: {workspace.report}")
    return 0 if report.passed else 1


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
