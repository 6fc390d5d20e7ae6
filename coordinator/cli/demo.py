"""`vnpu demo`: set up, run, report."""

from __future__ import annotations

import asyncio
import signal
import sys
import traceback
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
from coordinator.errors import VnpuError


def demo(root: Path, *, as_json: bool) -> int:
    """Run the demo below `root`; returns the exit code: 0 only if outputs were identical and every invariant held.

    Raises VnpuError for whatever went wrong; where that was none already, its traceback is in `demo.log`."""
    workspace = Workspace(root)
    console = Console(stderr=as_json)
    try:
        return _demo(workspace, console, as_json=as_json)
    except VnpuError:
        raise
    except Exception as error:
        workspace.root.mkdir(parents=True, exist_ok=True)
        workspace.log.write_text("".join(traceback.format_exception(error)))
        remedy = f"the traceback is in {workspace.log}, the node's logs are in {workspace.run_dir / 'logs'}"
        raise VnpuError(f"the demo broke off: {_in_one_line(error)}", remedy=remedy) from error


def _demo(workspace: Workspace, console: Console, *, as_json: bool) -> int:
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


def _in_one_line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}".removesuffix(": ")


async def _ended_by_signals(play: Coroutine[Any, Any, Report]) -> Report:
    """Ctrl-C, SIGTERM and SIGHUP end it in order: what it started must not stay. Once more: without patience."""
    task = asyncio.ensure_future(play)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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
