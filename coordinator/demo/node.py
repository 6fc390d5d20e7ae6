"""A whole node as a child process: `vnpu up` started, awaited and stopped as a user would, found by its `run.json`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from coordinator.errors import VnpuError
from coordinator.supervise.child import after
from coordinator.supervise.keeper import State
from coordinator.supervise.layout import NotRunning, RunDir, RunFile

START_LIMIT_S = 600.0
STOP_LIMIT_S = 90.0
POLL_S = 0.2


class NodeFailed(VnpuError):
    """`vnpu up` ended, or did not come up; the message carries the end of its output."""


class Node:
    """A running `vnpu up` and where its parts are. Use `running_node` to start one."""

    def __init__(self, child: subprocess.Popen[bytes], run_dir: Path, output: Path) -> None:
        self._child = child
        self._output = output
        self.run_dir = RunDir(run_dir)

    async def wait_ready(self) -> RunFile:
        """Wait until `run.json` says that every engine has come up. Raises `NodeFailed`, also when one has not."""
        async with self._limit(START_LIMIT_S):
            while (run := self.ready()) is None:
                if self._child.poll() is not None:
                    raise NodeFailed(self._describe(f"ended with status {self._child.returncode}"))
                await asyncio.sleep(POLL_S)
        failed = [process for process in run.processes if process.state == State.ENDED]
        if failed:
            logs = ", ".join(process.log for process in failed)
            raise NodeFailed(self._describe(f"could not start {', '.join(p.name for p in failed)} (logs: {logs})"))
        return run

    def ready(self) -> RunFile | None:
        """Where everything is, once every engine has come up or failed for good."""
        try:
            run = self.run_dir.read()
        except NotRunning:
            return None
        return run if run.ready and run.pid == self._child.pid else None

    async def stop(self) -> int:
        """SIGINT, as Ctrl-C would; returns the exit status. SIGKILL after `STOP_LIMIT_S`. Where the caller is cancelled
        meanwhile, a second SIGINT: `vnpu up` then kills what lingers."""
        self._child.send_signal(signal.SIGINT)
        ending = asyncio.ensure_future(asyncio.to_thread(self._child.wait))
        try:
            return await asyncio.wait_for(asyncio.shield(ending), STOP_LIMIT_S)
        except TimeoutError:
            self._child.kill()
        except asyncio.CancelledError:
            self._child.send_signal(signal.SIGINT)
            await ending
            raise
        return await ending

    @contextlib.asynccontextmanager
    async def _limit(self, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise NodeFailed(self._describe(f"did not come up in {seconds:g} s")) from error

    def _describe(self, what: str) -> str:
        tail = self._output.read_text(errors="replace").splitlines()[-15:] if self._output.exists() else []
        return f"'vnpu up' {what}; the end of {self._output}:\n" + "\n".join(tail)


def own_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Without what the user has set for a node of his own: keys and endpoints would change this one."""
    return {name: value for name, value in environ.items() if not name.startswith(("VNPU_", "ETCD_"))}


def start(config: Path, run_dir: Path, *arguments: str) -> Node:
    """Start `vnpu up` with `config`; its output goes to `up.log` beside the run files."""
    run_dir.mkdir(parents=True, exist_ok=True)
    output = run_dir / "up.log"
    command = [sys.executable, "-m", "coordinator.cli.main", "up", "--config", str(config), "--run-dir", str(run_dir)]
    command = [*after(os.getpid()), *command]  # should we be killed, its guard takes everything down
    with output.open("wb") as log:
        child = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=own_environment(os.environ) | {"NO_COLOR": "1"},
            start_new_session=True,  # the terminal's Ctrl-C is ours to pass on, once
        )
    return Node(child, run_dir, output)


@contextlib.asynccontextmanager
async def running_node(config: Path, run_dir: Path, *arguments: str) -> AsyncIterator[Node]:
    """A node that is stopped, in order, however the block ends."""
    node = start(config, run_dir, *arguments)
    try:
        yield node
    finally:
        await node.stop()
