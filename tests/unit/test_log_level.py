"""VNPU_LOG_LEVEL, wherever it is read: one line and exit 2 where it names no level."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.errors import ConfigError
from coordinator.log_level import log_level

DAEMON = ["native.daemon", "--node", "n", "--etcd", "http://127.0.0.1:9", "--socket", "s", "--state-dir", "d"]
ENTRIES = [
    ["coordinator.cli.main", "doctor"],
    ["coordinator", "--config", "vnpu.yaml", "--etcd", "http://127.0.0.1:9"],
    [*DAEMON, "--device", "0:host:64MiB"],
]


@pytest.mark.parametrize(("given", "level"), [({}, "INFO"), ({"VNPU_LOG_LEVEL": ""}, "INFO")])
def test_unset_it_is_the_configurations(given: dict[str, str], level: str) -> None:
    assert log_level(given, "info") == level


@pytest.mark.parametrize("given", ["debug", "DEBUG", "Warning", "error"])
def test_it_may_be_written_in_any_case(given: str) -> None:
    assert log_level({"VNPU_LOG_LEVEL": given}, "info") == given.upper()


@pytest.mark.parametrize("given", ["loud", "10", "notset", "debug "])
def test_anything_else_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"VNPU_LOG_LEVEL: .*debug, info, warning or error"):
        log_level({"VNPU_LOG_LEVEL": given}, "info")


@pytest.mark.parametrize("command", ENTRIES, ids=lambda command: command[0])
def test_every_entry_point_says_it_in_one_line(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"x")
    (tmp_path / "vnpu.yaml").write_text("devices: [{id: 0, capacity: 1GiB}]\nmodels: {m: {path: m, kv_cache: 1MiB}}\n")
    root = str(Path(__file__).parents[2])
    environ = {**os.environ, "VNPU_LOG_LEVEL": "loud", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-m", *command], env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if "VNPU_LOG_LEVEL" in line]
    assert all(level in line for level in ("debug", "info", "warning", "error"))
