"""What `vnpu up` shows: a live table while things start on a terminal, plain lines elsewhere, one line per event."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from coordinator.picture import Picture
from coordinator.sizes import show_duration
from coordinator.store.access import credentials_apart
from coordinator.supervise import readiness
from coordinator.supervise.keeper import Keeper, Kind, State
from coordinator.supervise.layout import Process, RunFile

_STYLES = {State.READY: "green", State.BACKING_OFF: "red", State.ENDED: "red", State.STARTING: "cyan"}
_LINES = frozenset({State.STARTING, State.READY, State.STOPPING})
_REFRESH_HZ = 4


class Told(logging.Handler):
    """What the process itself logs, as events among the others: a line on its own would break the live table."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(f"{record.levelname.lower()}: {record.getMessage()}")


class Progress:
    """A `Display` on a rich console. `close` gives the terminal back."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._began = clock()
        self._keepers: Sequence[Keeper] = ()
        self._picture = Picture()
        self._live: Live | None = None
        self._spinner = Spinner("dots")

    def say(self, text: str) -> None:
        self._console.print(
            f"[dim]{self._clock() - self._began:7.1f} s[/]  {escape(text)}", highlight=False, soft_wrap=True
        )

    def moved(self, keeper: Keeper) -> None:
        if self._live is None and keeper.state in _LINES:
            pid = f" (pid {keeper.child.pid})" if keeper.child and keeper.state is State.STARTING else ""
            self.say(f"{keeper.program.name}: {keeper.state}{pid}")

    def follow(self, keepers: Sequence[Keeper], picture: Picture) -> None:
        self._keepers, self._picture = keepers, picture
        if self._live is None and self._console.is_terminal:
            self._live = Live(
                get_renderable=self._table,
                console=self._console,
                refresh_per_second=_REFRESH_HZ,
                transient=True,
            )
            self._live.start()

    def ready(self, run: RunFile) -> None:
        self.close()
        self._console.print(self._table())
        missing = [keeper.program.name for keeper in self._keepers if keeper.state is State.ENDED]
        without = f" [bold red]without {escape(', '.join(missing))}[/]" if missing else ""
        took = show_duration(self._clock() - self._began)
        self._console.print(f"\n[bold green]vNPU is up[/]{without} after {took}")
        self._failures([process for process in run.processes if process.name in missing])
        lines = {
            "gateway": f"{run.gateway}/v1",
            "admin": run.admin,
            "etcd": ",".join(credentials_apart(run.etcd)[0]),
            "try": f"curl {run.gateway}/v1/models",
            "watch": command_for("vnpu-watch", Path(run.socket).parent),
            "stop": "Ctrl-C, or " + command_for("vnpu down", Path(run.socket).parent),
        }
        for name, value in lines.items():
            self._console.print(f"  {name:8} {escape(value)}", highlight=False, soft_wrap=True)

    def _failures(self, failed: Sequence[Process]) -> None:
        """What is not there, why, and what to do."""
        for process in failed:
            self._console.print(
                f"  [red]failed[/]   {escape(process.name)}: its log is {escape(process.log)}; "
                "when it is mended: vnpu engine " + escape(process.name),
                highlight=False,
                soft_wrap=True,
            )

    def close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("", "process", "state", "for", "pid", "url"):
            table.add_column(heading, no_wrap=True)
        for keeper in self._keepers:
            self._row(table, keeper)
        return table

    def _row(self, table: Table, keeper: Keeper) -> None:
        style = _STYLES.get(keeper.state, "dim")
        busy = keeper.state is State.STARTING
        table.add_row(
            self._spinner if busy else f"[{style}]●[/]",
            escape(keeper.program.name),
            f"[{style}]{escape(self._state(keeper))}[/]",
            show_duration(self._clock() - keeper.since),
            str(keeper.child.pid) if keeper.child else "",
            escape(keeper.program.url),
        )

    def _state(self, keeper: Keeper) -> str:
        """An engine's phase as etcd has it says more than that it is starting."""
        if keeper.program.kind is not Kind.ENGINE or keeper.state not in (State.STARTING, State.READY):
            return keeper.state
        phase = readiness.phase(self._picture, keeper.program.name)
        if keeper.state is State.READY:
            return phase or keeper.state
        return f"starting: {phase}" if phase and phase != "starting" else "starting: " + self._waits_for(keeper)

    def _waits_for(self, keeper: Keeper) -> str:
        pid = keeper.child.pid if keeper.child else 0
        return readiness.starting(self._picture, keeper.program.name, pid)


def command_for(words: str, run_dir: Path) -> str:
    """The words with which a user reaches the node in `run_dir` from here."""
    return words if run_dir == Path(".vnpu").absolute() else f"{words} --run-dir {run_dir}"
