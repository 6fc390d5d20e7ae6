"""A node in daily use: `up -d`, `status`, `logs`, `down`, over a real etcd and parts that are stand-ins."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.processes import alive, wait_gone

ROOT = Path(__file__).parents[2]
DRIVER = """
import sys
from pathlib import Path
from rich.console import Console
from coordinator.cli import main
from coordinator.cli.detached import up_detached, words_of
from coordinator.cli.up import up
from coordinator.supervise.layout import RunDir

python = sys.argv[1]
again = (sys.executable, __file__, python)


def run(args):
    run_dir = Path(args.run_dir)
    if not args.detach:
        return up(Path(args.config), run_dir, args.without, Console(), python)
    words = words_of(Path(args.config), run_dir, args.without, watch=False)
    return up_detached(words, RunDir(run_dir), Console(), main._limit(args), again)


main.COMMANDS = {**main.COMMANDS, "up": run}
sys.exit(main.main(sys.argv[2:]))
"""


class Node:
    """The commands of one node, each run to its end unless it is told to go on."""

    def __init__(self, folder: Path) -> None:
        self.run_dir = folder / "run"
        self._folder = folder
        self._python = folder / "python"
        self._python.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/helpers/stand_in.py "$@"\n')
        self._python.chmod(0o755)

    def begin(self, *words: str, **environ: str) -> subprocess.Popen[str]:
        config = ["--config", str(self._folder / "vnpu.yaml")] if words[0] == "up" else []
        return subprocess.Popen(
            [sys.executable, str(self._folder / "driver.py"), str(self._python), *words, *config,
             "--run-dir", str(self.run_dir)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200", **environ},
        )  # fmt: skip

    def do(self, *words: str, **environ: str) -> tuple[int, str]:
        process = self.begin(*words, **environ)
        said, _ = process.communicate(timeout=100)
        return process.returncode, said

    def pids(self) -> set[int]:
        """Of the node, all parts and their children."""
        run = json.loads((self.run_dir / "run.json").read_text())
        logs = [Path(part["log"]).read_text() for part in run["processes"]]
        children = {int(found) for log in logs for found in re.findall(r"grandchild (\d+)", log)}
        return {run["pid"]} | children | {part["pid"] for part in run["processes"] if part["pid"]}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    (tmp_path / "driver.py").write_text(DRIVER)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"x")
    (tmp_path / "vnpu.yaml").write_text(
        textwrap.dedent("""
            devices: [{id: 0, capacity: 1GiB}]
            gateway: {listen: 127.0.0.1:0}
            admin: {listen: 127.0.0.1:0}
            models:
              org/a: {path: a, kv_cache: 1MiB}
              b: {path: b, kv_cache: 1MiB, restart: never}
        """)
    )
    made = Node(tmp_path)
    yield made
    made.do("down", "--now")


def test_a_node_in_the_background_from_up_to_down(node: Node) -> None:
    code, said = node.do("up", "-d")
    assert code == 0, said
    assert "coordinator: ready" in said
    assert "vNPU is up, in the background" in said
    assert f"vnpu down --run-dir {node.run_dir}" in said
    assert "Ctrl-C" not in said
    pids = node.pids()
    assert all(map(alive, pids))

    code, said = node.do("status", "--json")
    assert (code, json.loads(said)["state"]) == (0, "up")
    assert {part["state"] for part in json.loads(said)["processes"]} == {"ready"}
    assert node.do("status")[0] == 0
    assert "grandchild" in node.do("logs", "org/a")[1]
    assert "org/a: ready" in node.do("logs")[1]
    assert node.do("logs", "--list")[1].split() == ["b", "coordinator", "daemon", "etcd", "org/a"]
    code, said = node.do("up", "-d")
    assert code == 2
    assert "another `vnpu up` runs in" in said

    following = node.begin("logs", "coordinator", "-f")
    assert following.stdout is not None
    assert following.stdout.readline()
    code, said = node.do("down")
    assert code == 0, said
    assert said.index("coordinator: stopped") < said.index("daemon: stopped") < said.index("etcd: stopped")
    assert not [pid for pid in pids if alive(pid)]
    assert not (node.run_dir / "run.json").exists()
    assert following.wait(60) == 0
    following.stdout.close()
    assert node.do("status")[0] == 1
    assert "stopped" in node.do("logs")[1]


def test_an_engine_that_cannot_start_is_named_and_the_others_serve(node: Node) -> None:
    code, said = node.do("up", "-d", STAND_IN_FAIL="b")
    assert code == 1
    assert "vNPU is up without b" in said
    assert f"b: its log is {node.run_dir}/logs/b.log" in said
    code, said = node.do("status", "--json")
    assert (code, json.loads(said)["state"]) == (1, "degraded")


def test_a_node_that_cannot_come_up_is_told_with_the_reason(node: Node) -> None:
    code, said = node.do("up", "-d", STAND_IN_FAIL="native.daemon")
    assert code == 1
    assert "daemon's last words: cannot" in said
    assert "vnpu: daemon cannot be kept running" in said
    assert node.do("status")[0] == 1


def test_ctrl_c_while_it_waits_ends_what_has_started(node: Node, tmp_path: Path) -> None:
    waiting = node.begin("up", "-d", STAND_IN_HOLD=str(tmp_path / "go"))
    assert waiting.stdout is not None
    while "org/a: starting" not in waiting.stdout.readline():
        assert waiting.poll() is None
    code, said = node.do("status", "--json")
    assert (code, json.loads(said)["state"]) == (1, "starting")
    pids = node.pids()
    waiting.send_signal(signal.SIGINT)
    said, _ = waiting.communicate(timeout=100)
    assert waiting.returncode == 130
    assert "stopping what has started" in said
    for pid in pids:
        wait_gone(pid)
    assert node.do("status")[0] == 1
