"""`vnpu up -d`: the same `vnpu up` in a session of its own, watched until it is up."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from coordinator.cli.progress import command_for
from coordinator.cli.status import ENDED, table
from coordinator.cli.tail import Tail
from coordinator.errors import ConfigError, VnpuError
from coordinator.supervise.layout import RunDir, RunFile, turn

VNPU = (sys.executable, "-m", "coordinator.cli.main")
LOOK_S = 0.1
STOP_S = 120.0
INTERRUPTED = 130
WIDTH = "160"
"""Columns of what is written to the log."""
_PROGRESS = re.compile(r" *\d+\.\d s  ")


class NotUp(VnpuError):
    """The node did not come up whole."""


def up_detached(
    words: Sequence[str], run_dir: RunDir, console: Console, limit_s: float, program: Sequence[str] = VNPU
) -> int:
    """Starts `program up WORDS` and returns when the node is up: 0, or 1 where an engine failed, or the exit code of
    what could not come up. Ctrl-C stops what has started.

    Raises:
        ConfigError: another `vnpu up` has that folder.
        NotUp: it is not up after `limit_s`; it goes on.
    """
    with _alone(run_dir):
        if run_dir.owner():
            remedy = "stop it: vnpu down; or name another folder: --run-dir DIR"
            raise ConfigError(f"another `vnpu up` runs in {run_dir.root}", remedy=remedy)
        child = _start((*program, "up", *words), run_dir)
        try:
            return _until_up(child, run_dir, console, time.monotonic() + limit_s)
        except KeyboardInterrupt:
            console.print("stopping what has started; once more to kill what lingers")
            _stop(child)
            return INTERRUPTED


@contextmanager
def _alone(run_dir: RunDir) -> Iterator[None]:
    """Of two that begin at once one is refused, so that `up.log` has one writer."""
    try:
        run_dir.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (run_dir.root / "up.lock").open("ab")
    except OSError as error:
        remedy = "make it a folder of yours, or name another: --run-dir DIR"
        raise ConfigError(f"{run_dir.root} cannot be used: {error.strerror}", remedy=remedy) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = "wait for it, or name another folder: --run-dir DIR"
            raise ConfigError(f"another `vnpu up -d` is at work in {run_dir.root}", remedy=remedy) from None
        yield


def _start(argv: Sequence[str], run_dir: RunDir) -> subprocess.Popen[bytes]:
    turn(run_dir.up_log)
    with run_dir.up_log.open("ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"COLUMNS": WIDTH, **os.environ},
            start_new_session=True,
        )


def _until_up(child: subprocess.Popen[bytes], run_dir: RunDir, console: Console, until: float) -> int:
    log = Tail(run_dir.up_log)
    while time.monotonic() < until:
        ended = child.poll()
        if ended is not None:
            _echo(log.rest(), console)
            return ended or 1  # in order, but before it was up: somebody stopped it
        said = log.read()
        run = run_dir.run_of(child.pid)
        if run is not None and run.ready:
            _echo([line for line in said if _PROGRESS.match(line)], console)  # not its own summary: ours follows
            return _up(run, run_dir, console)
        _echo(said, console)
        with suppress(subprocess.TimeoutExpired):
            child.wait(LOOK_S)
    remedy = f"it goes on; look: {command_for('vnpu status', run_dir.root)}; stop it: "
    raise NotUp("the node is not up yet", remedy=remedy + command_for("vnpu down", run_dir.root))


def _echo(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(escape(line), highlight=False, soft_wrap=True)


def _up(run: RunFile, run_dir: RunDir, console: Console) -> int:
    """What there is now, and how to reach it."""
    missing = [process for process in run.processes if process.state == ENDED]
    without = f" [bold red]without {escape(', '.join(process.name for process in missing))}[/]" if missing else ""
    console.print(table(run.processes))
    console.print(f"\n[bold green]vNPU is up[/]{without}, in the background (pid {run.pid})")
    lines = [("failed", f"{one.name}: its log is {one.log}") for one in missing]
    lines += [("gateway", f"{run.gateway}/v1"), ("admin", run.admin), ("log", str(run_dir.up_log))]
    lines += [("status", "vnpu status"), ("watch", "vnpu-watch"), ("stop", "vnpu down")]
    for name, value in lines:
        shown = command_for(value, run_dir.root) if value.startswith("vnpu") else value
        console.print(f"  {name:8} {escape(shown)}", highlight=False, soft_wrap=True)
    return 1 if missing else 0


def _stop(child: subprocess.Popen[bytes]) -> None:
    """In order; a second Ctrl-C is handed on as the second signal, which kills what lingers."""
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(STOP_S)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        child.send_signal(signal.SIGHUP)
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            remedy = f"kill -KILL {child.pid}: its guard then ends all of it"
            raise NotUp(f"`vnpu up` (pid {child.pid}) does not end", remedy=remedy) from None


def words_of(file: Path, run_dir: Path, without: Sequence[str], *, watch: bool) -> list[str]:
    """The command line of the `vnpu up` in the background."""
    words = ["--config", str(file), "--run-dir", str(run_dir)]
    words += [word for name in without for word in ("--without", name)]
    return [*words, "--watch-config"] if watch else words
