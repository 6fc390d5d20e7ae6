"""The run folder: one owner at a time, a run file that is whole or absent."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from coordinator.errors import ConfigError
from coordinator.supervise import layout
from coordinator.supervise.layout import NotRunning, Process, RunDir, RunFile


def run_file(pid: int) -> RunFile:
    return RunFile(
        pid=pid,
        ready=True,
        node="n",
        etcd=("http://e:1",),
        gateway="http://g",
        admin="http://a",
        socket="/s",
        processes=(Process("b", "engine", 7, "/l"),),
    )


def test_the_run_file_comes_back_and_goes_with_its_run(tmp_path: Path):
    folder = RunDir(tmp_path / "run")
    with folder.held():
        folder.write(run_file(os.getpid()))
        assert folder.read() == run_file(os.getpid())
        assert folder.run_file.stat().st_mode & 0o777 == 0o600
        folder.socket.touch()
    assert sorted(path.name for path in folder.root.iterdir()) == ["daemon", "lock", "logs", "transfer.key"]
    with pytest.raises(NotRunning, match="no node is running"):
        folder.read()


def test_a_run_file_whose_writer_is_dead_counts_for_nothing(tmp_path: Path):
    folder = RunDir(tmp_path)
    dead = subprocess.Popen(["true"])
    dead.wait()
    folder.write(run_file(dead.pid))
    with pytest.raises(NotRunning):
        folder.read()
    folder.run_file.write_text("{")
    with pytest.raises(NotRunning, match="not readable"):
        folder.read()


def test_a_second_owner_is_refused_and_leaves_the_first_ones_files(tmp_path: Path):
    folder = RunDir(tmp_path)
    with folder.held():
        folder.write(run_file(os.getpid()))
        with pytest.raises(ConfigError, match="another `vnpu up` runs"), RunDir(tmp_path).held():
            pass
        assert folder.run_file.exists()
    with folder.held():
        pass


@pytest.mark.parametrize("taken", ["a file", "a folder that nothing can be made in"])
def test_a_folder_that_cannot_be_written_is_named(taken: str, tmp_path: Path):
    root = tmp_path / "run" if taken == "a file" else Path("/proc/vnpu")
    if taken == "a file":
        root.touch()
    with pytest.raises(ConfigError, match=rf"^{root} cannot be used: .*--run-dir DIR"), RunDir(root).held():
        pass


def test_a_folder_without_room_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layout, "LEAST_FREE", 1 << 60)
    with pytest.raises(ConfigError, match=r"has no room: .* are free \(free 1"), RunDir(tmp_path).held():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ('{"level":"info","msg":"started"}\n', ""),
        ('{"level":"panic","msg":"failed to create WAL"}\n\ngoroutine 1 [running]:\nmain.main()\n\t/x.go:32', "WAL"),
        ("2026 ERROR native: no\n2026 INFO native: bye\n", "no"),
        ("ValueError: no\nx.py:254: UserWarning: leaked\n  warnings.warn('x'\n", "ValueError: no"),
        ("Killed\n", "Killed"),
        ("INFO " + "x" * 4096 + " the end of a long line\nINFO bye\n", ""),
    ],
)
def test_the_last_words_are_those_that_tell_something(said: str, words: str, tmp_path: Path):
    folder = RunDir(tmp_path)
    folder.logs.mkdir()
    folder.log("a").write_text(said)
    assert words in folder.last_words("a")
    assert bool(words) == bool(folder.last_words("a"))


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="too long"), RunDir(tmp_path / ("x" * 120)).held():
        pass


def test_a_models_name_with_a_slash_is_one_log_file(tmp_path: Path):
    assert RunDir(tmp_path).log("org/a").name == "org%2Fa.log"


def test_a_run_begins_with_empty_logs_and_keeps_those_before(tmp_path: Path):
    folder = RunDir(tmp_path)
    with folder.held():
        assert folder.last_words("a") == ""
        folder.log("a").write_text("first\n  last of the first run\n\n")
        assert folder.last_words("a") == "first"  # what is indented belongs to something longer
        folder.log("a").write_text("x\nValueError: no\n  warnings.warn(\n")
        assert folder.last_words("a") == "ValueError: no"
    with folder.held():
        assert folder.last_words("a") == ""
        assert "ValueError" in (folder.logs / "a.log.1").read_text()


def test_the_transfer_key_is_private_and_outlives_a_run(tmp_path: Path):
    folder = RunDir(tmp_path / "run")
    with folder.held():
        key = folder.transfer_key.read_bytes()
        assert folder.transfer_key.stat().st_mode & 0o777 == 0o600
    with folder.held():
        assert folder.transfer_key.read_bytes() == key
    assert len(key) == 64
