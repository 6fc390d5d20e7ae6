"""`vnpu status`: what of the node runs, from its lock and its run file; no etcd is asked."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coordinator.cli.progress import command_for
from coordinator.store.access import credentials_apart
from coordinator.supervise.layout import NotRunning, Process, RunDir, RunFile

READY, STOPPED, ENDED = "ready", "stopped", "ended"
FINE = frozenset({READY, STOPPED})
"""`stopped` is a lazy engine that nobody needs now."""
_STYLES = {READY: "green", STOPPED: "dim", "backing off": "red", ENDED: "red"}


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """`state`: `down`, `starting` (something has not come up yet), `up`, or `degraded` (something of it is gone or
    starts again). `etcd` is without credentials."""

    state: str
    run_dir: str
    pid: int = 0
    node: str = ""
    gateway: str = ""
    admin: str = ""
    etcd: tuple[str, ...] = ()
    processes: tuple[Process, ...] = ()


def look(run_dir: RunDir) -> Status:
    """As it is now."""
    owner = run_dir.owner()
    return judge(str(run_dir.root), owner, run_dir.run_of(owner) if owner else None)


def judge(run_dir: str, owner: int, run: RunFile | None) -> Status:
    """Pure. `owner`: the pid of the `vnpu up` there, 0 for none; `run`: what it wrote, None: nothing yet."""
    if not owner:
        return Status(state="down", run_dir=run_dir)
    if run is None:
        return Status(state="starting", run_dir=run_dir, pid=owner)
    whole = all(process.state in FINE for process in run.processes)
    return Status(
        state="up" if run.ready and whole else "degraded" if run.ready else "starting",
        run_dir=run_dir,
        pid=owner,
        node=run.node,
        gateway=run.gateway,
        admin=run.admin,
        etcd=credentials_apart(run.etcd)[0],
        processes=run.processes,
    )


def status(run_dir: RunDir, console: Console, *, as_json: bool) -> int:
    """Prints it. The exit code: 0 where all of it is up, else 1. Raises NotRunning where nothing runs, unless JSON is
    asked for."""
    found = look(run_dir)
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found)).decode() + "\n")
        return 0 if found.state == "up" else 1
    if found.state == "down":
        raise NotRunning(
            f"no node is running in {found.run_dir}", remedy="start it: vnpu up -d; or name its folder: --run-dir DIR"
        )
    console.print(f"node {escape(found.node) or '?'}: [bold]{found.state}[/] (pid {found.pid})", highlight=False)
    if found.processes:
        console.print(table(found.processes))
    lines = {"gateway": found.gateway and f"{found.gateway}/v1", "admin": found.admin, "etcd": ",".join(found.etcd)}
    lines["models"] = command_for("vnpu-watch ps", run_dir.root)
    lines["logs"] = command_for("vnpu logs NAME", run_dir.root)
    for name, value in lines.items():
        if value:
            console.print(f"  {name:8} {escape(value)}", highlight=False, soft_wrap=True)
    return 0 if found.state == "up" else 1


def table(processes: Sequence[Process]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("", "process", "state", "pid", "url"):  # where its log is, `vnpu logs` knows: 80 columns suffice
        shown.add_column(heading, no_wrap=True)
    for process in processes:
        style = _STYLES.get(process.state, "cyan")
        shown.add_row(
            f"[{style}]●[/]",
            escape(process.name),
            f"[{style}]{escape(process.state)}[/]",
            str(process.pid or ""),
            escape(process.url),
        )
    return shown
