"""`status`, `logs`, `down`, `config check`, `completion` and `up -d` where no node runs, and what each decides."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.cli import main as cli
from coordinator.cli import parser
from coordinator.cli.status import judge
from coordinator.supervise.layout import Process, RunDir, RunFile
from tests.helpers.model_folder import model_folder

# Whoever runs these tests may have been told to survive a hang-up (nohup), which children inherit.
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_DFL)"
HOLD = """
import sys, time
from pathlib import Path
from coordinator.supervise.layout import RunDir
with RunDir(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.read()
"""


def run_file(*states: str, pid: int = 7, ready: bool = True) -> RunFile:
    return RunFile(
        pid=pid,
        ready=ready,
        node="n",
        etcd=("http://root:sesame@e:1",),
        gateway="http://g",
        admin="http://a",
        socket="/s",
        processes=tuple(Process(f"p{n}", "engine", n, f"/l{n}", state=state) for n, state in enumerate(states)),
    )


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VNPU_CONFIG", raising=False)
    return RunDir(tmp_path / ".vnpu")


@pytest.fixture
def held(here: RunDir) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder as `vnpu up` has it, and does nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(here.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
        holder.kill()


@pytest.mark.parametrize(
    ("owner", "run", "state"),
    [
        (0, None, "down"),
        (7, None, "starting"),
        (7, run_file("ready", "starting", ready=False), "starting"),
        (7, run_file("ready", "stopped"), "up"),
        (7, run_file("ready", "ended"), "degraded"),
        (7, run_file("ready", "backing off"), "degraded"),
    ],
)
def test_the_state_of_a_node(owner: int, run: RunFile | None, state: str) -> None:
    found = judge("/r", owner, run)
    assert found.state == state
    assert "sesame" not in repr(found)


def test_the_owner_of_a_folder_is_who_holds_it_and_nobody_once_he_is_dead(
    here: RunDir, held: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert here.owner() == held.pid
    here.write(run_file("ready", pid=held.pid))
    assert here.run_of(held.pid) is not None
    assert here.run_of(held.pid + 1) is None
    code, out, _ = run(capsys, "status", "--json")
    assert (code, json.loads(out)["state"], json.loads(out)["pid"]) == (0, "up", held.pid)
    code, out, _ = run(capsys, "status")
    assert code == 0
    assert "sesame" not in out
    assert "p0" in out
    assert run(capsys, "up", "-d")[2].startswith("vnpu: another `vnpu up` runs in")
    held.kill()
    held.wait()
    assert here.owner() == 0


def test_down_ends_who_holds_the_folder_and_says_so(
    here: RunDir, held: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    part = Process("a", "engine", held.pid, "/l", state="ready")
    here.write(RunFile(**{**{f: getattr(run_file(pid=held.pid), f) for f in RunFile.__struct_fields__},
                          "processes": (part,)}))  # fmt: skip
    code, out, _ = run(capsys, "down")
    assert code == 0
    assert out.splitlines() == [f"stopping the node (pid {held.pid})", "a: stopped", "stopped"]
    assert held.wait() != 0


@pytest.mark.parametrize("words", [("--now", "--timeout", "1h"), ("--timeout", "100ms")])
def test_who_does_not_end_by_itself_is_ended_by_the_second_signal(
    here: RunDir, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    deaf = DEAF + HOLD
    with subprocess.Popen(
        [sys.executable, "-c", deaf, str(here.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        code, out, _ = run(capsys, "down", *words)
    assert (code, holder.returncode) == (0, -signal.SIGHUP)
    assert "killing what lingers" in out


def test_where_nothing_runs_down_is_done_and_status_is_not(here: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "down")
    assert (code, out) == (0, f"no node is running in {here.root}\n")
    assert run(capsys, "status")[0] == 1
    code, out, _ = run(capsys, "status", "--json")
    assert (code, json.loads(out)["state"]) == (1, "down")


def test_two_detached_starts_at_once_are_one(here: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    here.root.mkdir()
    with (here.root / "up.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = run(capsys, "up", "-d")
    assert code == 2
    assert "another `vnpu up -d` is at work" in err


def test_a_detached_start_that_fails_says_why_with_its_exit_code(
    here: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "up", "-d", "--config", "no.yaml")
    assert code == 2
    assert "vnpu: no.yaml: cannot be read" in out
    assert "no.yaml" in here.up_log.read_text()
    run(capsys, "up", "-d", "--config", "other.yaml")
    assert "no.yaml" in here.up_log.with_name("up.log.1").read_text()
    assert "other.yaml" in run(capsys, "logs")[1]


def test_logs_are_found_by_name_also_after_the_end(here: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "logs", "a")
    assert code == 2
    assert "no node has run here" in err
    here.logs.mkdir(parents=True)
    here.log("org/a").write_text("one\ntwo\nthree\n")
    here.log("etcd").with_name("etcd.log.1").write_text("before\n")
    assert run(capsys, "logs", "org/a", "-n", "2") == (0, "two\nthree\n", "")
    assert run(capsys, "logs", "org/a", "-n", "all", "-f") == (0, "one\ntwo\nthree\n", "")  # nothing runs: it ends
    assert run(capsys, "logs", "etcd", "--previous") == (0, "before\n", "")
    assert run(capsys, "logs", "--list")[1] == "org/a\n"
    assert "there is no log of b (known: org/a)" in run(capsys, "logs", "b")[2]
    assert "name a process: org/a" in run(capsys, "logs")[2]


@pytest.mark.parametrize("words", [("logs", "a", "-n", "x"), ("config",), ("completion", "tcsh")])
def test_words_that_mean_nothing_end_with_2(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2


@pytest.mark.parametrize("command", ["up -d", "down"])
def test_a_duration_that_is_none_is_named(here: RunDir, capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, _, err = run(capsys, *command.split(), "--timeout", "soon")
    assert code == 2
    assert "--timeout: " in err


def test_config_check_names_every_fault_for_people_and_for_programs(
    here: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    model_folder(here.root.parent / "a")
    file = here.root.parent / "vnpu.yaml"
    file.write_text("devices: [{id: 0, capacity: 1GiB}]\nmodels: {a: {path: a, kv_cache: 1MiB}}\n")
    code, out, err = run(capsys, "config", "check")
    assert (code, out, err) == (0, "vnpu.yaml is sound: node local, devices 0, models a\n", "")
    assert json.loads(run(capsys, "config", "check", "--json")[1]) == {"file": "vnpu.yaml", "sound": True, "faults": []}
    file.write_text("devices: [{id: 0, capacity: much}]\nmodels: {a: {path: a}}\n")
    code, out, err = run(capsys, "config", "check", str(file))
    assert code == 2
    assert [line.split(": ")[1] for line in out.splitlines()] == ["devices[0].capacity", "models.a.kv_cache"]
    assert err == f"vnpu: 2 faults in {file}\n"
    found = json.loads(run(capsys, "config", "check", "--json")[1])
    assert [fault["key"] for fault in found["faults"]] == ["devices[0].capacity", "models.a.kv_cache"]
    assert all(fault["remedy"] and fault["fault"] and fault["file"] == "vnpu.yaml" for fault in found["faults"])


def offered(tmp_path: Path, script: str, *words: str) -> set[str]:
    (tmp_path / "vnpu").write_text("#!/bin/sh\necho qwen-a; echo daemon\n")
    (tmp_path / "vnpu").chmod(0o755)
    line = " ".join(f"'{word}'" for word in words)
    asks = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _vnpu; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(
        ["bash", "-c", script + asks],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True, timeout=60,
        cwd=tmp_path,
    )  # fmt: skip
    return set(done.stdout.split())


def test_bash_completes_commands_options_choices_and_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert offered(tmp_path, script, "vnpu", "") == set(cli.COMMANDS)
    assert offered(tmp_path, script, "vnpu", "logs", "q") == {"qwen-a"}
    assert offered(tmp_path, script, "vnpu", "up", "--de") == {"--detach"}
    assert offered(tmp_path, script, "vnpu", "config", "") == {"check"}
    assert offered(tmp_path, script, "vnpu", "up", "--config", "v") == {"vnpu"}


@pytest.mark.parametrize("shell", parser.SHELLS)
def test_every_shell_gets_the_words_of_vnpu(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "vnpu logs --list" in script
    assert all(command in script for command in cli.COMMANDS)
