"""A node as the demo has it: a child that says in its run file when it is ready, and is stopped in order."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from coordinator.demo.node import Node, NodeFailed
from coordinator.supervise.layout import Process, RunDir, RunFile

PATIENCE_S = 60.0
Start = Callable[..., "subprocess.Popen[bytes]"]
TWICE = """
import signal, sys
count = 0
def told(*_):
    global count
    count += 1
    print(count, flush=True)
    if count == 2:
        sys.exit(130)
signal.signal(signal.SIGINT, told)
print("up", flush=True)
while True:
    signal.pause()
"""


def run_file(pid: int, *, ready: bool, state: str = "ready") -> RunFile:
    engine = Process("a", "engine", 0, "/logs/a.log", state=state)
    return RunFile(
        pid=pid, ready=ready, node="n", etcd=("http://e:1",), gateway="g", admin="a", socket="s", processes=(engine,)
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def one(*argv: str) -> subprocess.Popen[bytes]:
            child = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE))
            stack.callback(child.kill)
            return child

        yield one


def node_of(child: subprocess.Popen[bytes], folder: RunDir) -> Node:
    return Node(child, folder.root, folder.root / "up.log")


async def test_a_node_is_ready_when_its_run_file_says_so(folder: RunDir, start: Start) -> None:
    child = start("sleep", "1000")
    folder.write(run_file(os.getpid(), ready=True))  # another node's, of before
    waiting = asyncio.create_task(node_of(child, folder).wait_ready())
    await asyncio.sleep(0)
    folder.write(run_file(child.pid, ready=False))
    await asyncio.sleep(0)
    assert not waiting.done()
    folder.write(ready := run_file(child.pid, ready=True))
    assert await asyncio.wait_for(waiting, PATIENCE_S) == ready


async def test_an_engine_that_has_failed_is_named_with_its_log(folder: RunDir, start: Start) -> None:
    child = start("sleep", "1000")
    folder.write(run_file(child.pid, ready=True, state="ended"))
    with pytest.raises(NodeFailed, match=r"could not start a \(logs: /logs/a.log\)"):
        await node_of(child, folder).wait_ready()


async def test_a_node_that_ends_instead_is_told_with_its_last_words(folder: RunDir, start: Start) -> None:
    (folder.root / "up.log").write_text("vnpu: no such file\n")
    with pytest.raises(NodeFailed, match=r"ended with status 1.*\n.*no such file"):
        await node_of(start("false"), folder).wait_ready()


async def test_whoever_is_told_again_while_stopping_passes_it_on(folder: RunDir, start: Start) -> None:
    child = start(sys.executable, "-c", TWICE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    stopping = asyncio.create_task(node_of(child, folder).stop())
    assert await asyncio.to_thread(child.stdout.readline) == b"1\n"
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(stopping, PATIENCE_S)
    assert child.returncode == 130
