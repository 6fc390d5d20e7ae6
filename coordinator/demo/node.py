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
from coordinator.supervise.layout import RunDir, RunFile

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
        """Wait until `vnpu up` says that everything is up: it writes `run.json` then. Raises `NodeFailed`."""
        async with _limit(START_LIMIT_S, self._describe("did not come up in time")):
            while not self.run_dir.run_file.exists():
                if self._child.poll() is not None:
                    raise NodeFailed(self._describe(f"ended with status {self._child.returncode}"))
                await asyncio.sleep(POLL_S)
        return self.run_dir.read()

    async def stop(self) -> int:
        """SIGINT, as Ctrl-C would; returns the exit status. SIGKILL after `STOP_LIMIT_S`."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
        try:
            return await asyncio.wait_for(asyncio.to_thread(self._child.wait), STOP_LIMIT_S)
        except TimeoutError:
            self._child.kill()
            return await asyncio.to_thread(self._child.wait)

    def _describe(self, what: str) -> str:
        tail = self._output.read_text(errors="replace").splitlines()[-15:] if self._output.exists() else []
        return f"'vnpu up' {what}; the end of {self._output}:\n" + "\n".join(tail)


@contextlib.asynccontextmanager
async def _limit(seconds: float, message: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise NodeFailed(message) from error


def own_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Without what the user has set for a node of his own: keys and endpoints would change this one."""
    return {name: value for name, value in environ.items() if not name.startswith(("VNPU_", "ETCD_"))}


def start(config: Path, run_dir: Path, *arguments: str) -> Node:
    """Start `vnpu up` with `config`; its output goes to `up.log` beside the run files."""
    run_dir.mkdir(parents=True, exist_ok=True)
    output = run_dir / "up.log"
    command = [sys.executable, "-m", "coordinator.cli.main", "up", "--config", str(config), "--run-dir", str(run_dir)]
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
