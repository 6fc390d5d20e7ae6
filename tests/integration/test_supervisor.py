"""`vnpu up` as a process: what it starts, what it says, and that nothing is left of it however it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from coordinator.core.process import Life, Process, ProcessOrder, Wish
from coordinator.store import connect, keys
from coordinator.store.base import Put
from coordinator.store.codec import decode, encode
from coordinator.store.follow import follow
from tests.helpers.etcd import running_etcd
from tests.helpers.processes import alive, wait_gone

URLS = ("gateway", "admin")
ROOT = Path(__file__).parents[2]
DRIVER = """
import sys
from pathlib import Path
from rich.console import Console
from coordinator.cli import main
from coordinator.cli.up import up
main.COMMANDS = {"up": lambda args: up(Path(args.config), Path(args.run_dir), args.without, Console(), sys.argv[1])}
sys.exit(main.main(sys.argv[2:]))
"""


class Up:
    """A `vnpu up` whose parts are stand-ins; its output is read line by line."""

    def __init__(self, folder: Path, *arguments: str, **environ: str) -> None:
        self.run_dir = folder / "run"
        self._said: list[str] = []
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/helpers/stand_in.py "$@"\n')
        python.chmod(0o755)
        command = ["up", "--config", str(folder / "vnpu.yaml"), "--run-dir", str(self.run_dir), *arguments]
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(python), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200", **environ},
            start_new_session=True,
        )

    def until(self, pattern: str) -> str:
        """Reads on to the first line that matches. Fails where the output ends before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.append(line)
            if re.search(pattern, line):
                return line
        pytest.fail(f"{pattern!r} was never said:\n{self.said}")

    @property
    def said(self) -> str:
        return "".join(self._said)

    def end(self) -> int:
        """The exit code, with all that was said until then in `said`."""
        rest, _ = self.process.communicate(timeout=100)
        self._said.append(rest)
        return self.process.returncode

    def run_file(self) -> dict:
        return json.loads((self.run_dir / "run.json").read_text())

    def pids(self) -> set[int]:
        """Of all parts and their children; etcd's own included."""
        parts = self.run_file()["processes"]
        grandchildren = [
            int(found) for part in parts for found in re.findall(r"grandchild (\d+)", Path(part["log"]).read_text())
        ]
        return {part["pid"] for part in parts if part["pid"]} | set(grandchildren)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
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
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator:
    started: list[Up] = []

    def start(*arguments: str, **environ: str) -> Up:
        started.append(Up(folder, *arguments, **environ))
        return started[-1]

    yield start
    for up in started:
        if up.process.poll() is None:
            up.process.kill()
        up.process.wait()
        if up.process.stdout is not None:
            up.process.stdout.close()


def test_up_tells_where_everything_is_and_ctrl_c_ends_it_in_order(start, folder):
    up = start()
    up.until("Ctrl-C")
    run = up.run_file()
    assert run["pid"] == up.process.pid
    parts = {part["name"]: part["pid"] for part in run["processes"]}
    assert (run["gateway"], run["admin"]) == tuple(f"http://{what}.{parts['coordinator']}" for what in URLS)
    assert (run["node"], run["ready"]) == ("local", True)
    assert {part["state"] for part in run["processes"]} == {"ready"}
    assert [part["name"] for part in run["processes"]] == ["etcd", "daemon", "coordinator", "org/a", "b"]
    assert {part["kind"] for part in run["processes"]} == {"etcd", "daemon", "coordinator", "engine"}
    assert all(Path(part["log"]).exists() and alive(part["pid"]) for part in run["processes"])
    assert Path(run["socket"]).is_socket()
    pids = up.pids()
    assert len(pids) == 5 + 4

    second = start()
    assert second.end() == 2
    assert "another `vnpu up` runs in" in second.said

    up.process.send_signal(signal.SIGINT)
    assert up.end() == 130
    stopping = re.findall(r"(\S+): stopping", up.said)
    assert stopping[0] == "coordinator"
    assert set(stopping[1:3]) == {"org/a", "b"}
    assert stopping[3:] == ["daemon", "etcd"]
    assert not [pid for pid in pids if alive(pid)]
    assert not (up.run_dir / "run.json").exists()
    assert not (up.run_dir / "daemon.sock").exists()


def test_other_commands_find_a_node_while_its_engines_start(start, folder):
    up = start(STAND_IN_HOLD=str(folder / "go"))
    up.until("org/a: starting")
    run = up.run_file()
    assert not run["ready"]
    assert {part["name"] for part in run["processes"] if part["state"] == "ready"} == {"etcd", "daemon", "coordinator"}
    shown = subprocess.run(
        [sys.executable, "-m", "coordinator.cli.watch", "--once", "--json", "--run-dir", str(up.run_dir)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert [device["id"] for device in json.loads(shown.stdout)["devices"]] == ["local/0"]
    (folder / "go").touch()
    up.until("Ctrl-C")
    assert up.run_file()["ready"]


def test_an_engine_that_cannot_start_is_named_and_the_others_are_up(start, folder):
    up = start(STAND_IN_FAIL="b")
    up.until("vNPU is up without b after")
    log = str(up.run_dir / "logs" / "b.log")
    assert f"failed   b: its log is {log}; when it is mended: vnpu engine b" in up.until("failed   b")
    run = up.run_file()
    assert run["ready"]
    assert {part["name"] for part in run["processes"] if part["state"] == "ended"} == {"b"}
    os.kill(next(part["pid"] for part in run["processes"] if part["name"] == "org/a"), signal.SIGKILL)
    up.until("org/a: ready")  # the node goes on


def test_without_any_engine_the_node_is_not_up(start, folder):
    text = (folder / "vnpu.yaml").read_text().replace("org/a: {", "org/a: {restart: never, ")
    (folder / "vnpu.yaml").write_text(text)
    up = start(STAND_IN_FAIL="vllm.entrypoints.openai.api_server")
    assert up.end() == 1
    assert "is up" not in up.said
    logs = ", ".join(str(up.run_dir / "logs" / name) for name in ("org%2Fa.log", "b.log"))
    assert f"no engine is left to serve org/a, b (mend what stands at the end of {logs}, then start again)" in up.said


def test_an_engine_gets_the_same_cores_whoever_starts_it(start, folder):
    up = start("--without", "org/a")
    up.until("Ctrl-C")
    ours = re.search(r"cores (\S+)", (up.run_dir / "logs" / "b.log").read_text())
    command = [sys.executable, "-m", "coordinator.cli.main", "engine", "b", "--config", str(folder / "vnpu.yaml")]
    shown = subprocess.run([*command, "--run-dir", str(up.run_dir), "--json"], check=True, capture_output=True)
    assert ours is not None
    assert json.loads(shown.stdout)["env"]["VLLM_CPU_OMP_THREADS_BIND"] == ours[1]


def test_a_killed_engine_is_announced_and_restarted_and_a_killed_up_leaves_nothing(start, folder):
    up = start()
    up.until("Ctrl-C")
    pids = up.pids()
    parts = {part["name"]: part["pid"] for part in up.run_file()["processes"]}

    os.kill(parts["org/a"], signal.SIGKILL)
    up.until(r"org/a was killed by SIGKILL; restarting in 1 s \(crash 1\)")
    down = {part["name"]: part["pid"] for part in up.run_file()["processes"]}
    assert down == {**parts, "org/a": down["org/a"]}
    assert down["org/a"] != parts["org/a"]  # 0, or the next one: a second goes by
    up.until("org/a: ready")
    anew = {part["name"]: part["pid"] for part in up.run_file()["processes"]}
    assert anew["org/a"] != parts["org/a"]
    assert {**anew, "org/a": 0} == {**parts, "org/a": 0}

    os.kill(parts["b"], signal.SIGKILL)
    up.until(r"b was killed by SIGKILL; it is not restarted \(restart: never\)")
    os.kill(parts["etcd"], signal.SIGKILL)
    up.until("etcd was killed by SIGKILL; restarting in 1 s")
    assert states(up)["b"][1] == 0
    up.until("etcd: ready")

    os.kill(parts["coordinator"], signal.SIGKILL)
    up.until("coordinator: ready")
    run = up.run_file()
    [new] = [part["pid"] for part in run["processes"] if part["name"] == "coordinator"]
    assert new not in (0, parts["coordinator"])
    assert (run["gateway"], run["admin"]) == tuple(f"http://{what}.{new}" for what in URLS)

    pids |= up.pids()
    up.process.kill()
    for pid in pids:
        wait_gone(pid)
    wait_gone_file(up.run_dir / "run.json")
    wait_gone_file(up.run_dir / "daemon.sock")


def test_a_lazy_engine_runs_when_the_leader_says_so(start, folder):
    text = (folder / "vnpu.yaml").read_text().replace("org/a: {", "org/a: {start: lazy, stop_after: 1h, ")
    (folder / "vnpu.yaml").write_text(text)
    up = start()
    up.until("Ctrl-C")
    process = asyncio.run(said(up, Life.STOPPED))
    assert (process.model, process.devices, process.lazy) == ("org/a", ("local/0",), True)
    assert (process.stop_after, process.weights, process.bytes >> 30) == (3600.0, 16 << 20, 1)
    assert states(up)["org/a"] == ("stopped", 0)
    asyncio.run(order(up, "somebody else", Wish.RUN))
    first = asyncio.run(order(up, process.keeper, Wish.RUN))
    up.until("org/a: ready")
    running = asyncio.run(said(up, Life.RUNNING))
    assert (running.obeyed, running.measured) == (first, True)
    assert 0 < running.bytes < process.bytes
    asyncio.run(order(up, process.keeper, Wish.CLOSE))
    pids = up.pids()
    second = asyncio.run(order(up, process.keeper, Wish.STOP))
    assert asyncio.run(said(up, Life.STOPPED)).obeyed == second
    assert states(up)["org/a"] == ("stopped", 0)
    assert states(up)["b"][0] == "ready"
    asyncio.run(order(up, process.keeper, Wish.RUN))
    up.until("org/a: ready")
    pids |= up.pids()
    up.process.send_signal(signal.SIGTERM)
    assert up.end() == 0
    assert "last words" not in up.said
    assert not [pid for pid in pids if alive(pid)]


def test_a_lazy_engine_that_cannot_start_is_told_to_the_leader(start, folder):
    text = (folder / "vnpu.yaml").read_text().replace("b: {", "b: {start: lazy, ")
    (folder / "vnpu.yaml").write_text(text)
    up = start(STAND_IN_FAIL="b")
    up.until("Ctrl-C")
    keeper = asyncio.run(said(up, Life.STOPPED, "b")).keeper
    asyncio.run(order(up, keeper, Wish.RUN, "b"))
    failed = asyncio.run(said(up, Life.FAILED, "b"))
    assert failed.error == "b ended and is not started again; its log says why"
    again = asyncio.run(order(up, keeper, Wish.RUN, "b"))
    asyncio.run(said(up, Life.FAILED, "b", again))


def states(up):
    return {part["name"]: (part["state"], part["pid"]) for part in up.run_file()["processes"]}


async def said(up, life, engine="org/a", obeyed=0):
    """What the node says of the engine's process, as soon as it is in that life."""
    store = connect(up.run_file()["etcd"], environ={})
    key = keys.process("local", engine)
    try:
        async with asyncio.timeout(60), aclosing(follow(store, key)) as news:
            async for _ in news:
                kv = await store.get(key)
                found = decode(Process, kv.value) if kv is not None else None
                if found is not None and found.life is life and found.obeyed >= obeyed:
                    return found
    finally:
        await store.close()


async def order(up, keeper, wish, engine="org/a"):
    """As the leader does; returns its revision."""
    store = connect(up.run_file()["etcd"], environ={})
    try:
        put = Put(keys.process_order(engine), encode(ProcessOrder(keeper=keeper, wish=wish)))
        return (await store.txn([], [put])).revision
    finally:
        await store.close()


def wait_gone_file(path: Path) -> None:
    """The guard removes files after it has killed processes; it ends then, and its end is what we cannot see."""
    until = time.monotonic() + 60.0
    while path.exists():
        assert time.monotonic() < until, f"{path} is still there"
        time.sleep(0.01)


def test_a_daemon_that_cannot_start_ends_the_node(start, folder):
    up = start(STAND_IN_FAIL="native.daemon")
    assert up.end() == 1
    assert "daemon ended with status 3; restarting in 1 s (crash 1)" in up.said
    assert "daemon's last words: cannot" in up.said
    assert "daemon ended with status 3; given up after 3 failed starts" in up.said
    assert "vnpu: daemon cannot be kept running (see" in up.said
    assert "cannot" in (up.run_dir / "logs" / "daemon.log").read_text()
    assert not (up.run_dir / "run.json").exists()


def test_what_ignores_sigterm_is_killed_on_the_second_ctrl_c(start, folder):
    up = start("--without", "b", STAND_IN_STUBBORN="vllm.entrypoints.openai.api_server")
    up.until("Ctrl-C")
    pids = up.pids()
    up.process.send_signal(signal.SIGTERM)
    up.until("org/a: stopping")
    up.process.send_signal(signal.SIGTERM)
    assert up.end() == 0
    assert "stopping everything now" in up.said
    assert not [pid for pid in pids if alive(pid)]


def test_a_port_that_is_taken_is_named_before_anything_starts(start, folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = (folder / "vnpu.yaml").read_text()
        (folder / "vnpu.yaml").write_text(
            text.replace("gateway: {listen: 127.0.0.1:0}", f"gateway: {{listen: 127.0.0.1:{port}}}")
        )
        up = start()
        assert up.end() == 2
    assert f"{folder}/vnpu.yaml: gateway.listen: 127.0.0.1:{port} is taken by another process" in up.said
    assert not list((up.run_dir / "logs").iterdir())


def test_an_etcd_that_does_not_answer_is_named(start, folder):
    text = (folder / "vnpu.yaml").read_text()
    (folder / "vnpu.yaml").write_text(text + "etcd: [http://127.0.0.1:9]\n")
    up = start()
    assert up.end() == 1
    assert "etcd at http://127.0.0.1:9 does not answer" in up.said


def test_the_password_of_an_etcd_is_not_shown(start, folder):
    text = (folder / "vnpu.yaml").read_text()
    (folder / "vnpu.yaml").write_text(text + "etcd: [http://root:sesame@127.0.0.1:9]\n")
    up = start()
    assert up.end() == 1
    assert "etcd at http://127.0.0.1:9 does not answer" in up.said
    assert "sesame" not in up.said


def test_an_etcd_that_loses_data_is_refused(start, folder, tmp_path_factory):
    with running_etcd(tmp_path_factory.mktemp("own")) as etcd:
        text = (folder / "vnpu.yaml").read_text()
        (folder / "vnpu.yaml").write_text(text + f"etcd: [{etcd.url}]\n")
        up = start(VNPU_ETCD_CHECK="")
        assert up.end() == 2
    assert "can lose consistency when killed" in up.said
    assert not (up.run_dir / "logs" / "coordinator.log").exists()
