"""The doctor on machines that lack something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.cli import doctor

FILE = Path(doctor.__file__)


def examine(*words: str, **environ: str) -> tuple[int, str]:
    """As `make doctor` runs it: a file, the standard library alone."""
    command = [sys.executable, "-I", "-S", str(FILE), *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environ}, check=False)
    return done.returncode, done.stdout


def test_this_machine_is_well():
    code, said = examine("--json")
    report = json.loads(said)
    states = {finding["name"]: finding["state"] for finding in report["findings"]}
    assert (code, report["ok"]) == (0, True)
    assert len(states) == len(doctor.CHECKS)
    assert {states[name] for name in ("machine", "python", "venv module", "Python.h", "g++", "libnuma")} == {"ok"}


def test_what_is_missing_is_named_with_its_remedy(tmp_path):
    """An empty PATH: no compiler, and no Python but the one that runs."""
    code, said = examine("--json", PATH=str(tmp_path))
    findings = {finding["name"]: finding for finding in json.loads(said)["findings"]}
    assert code == 1
    assert findings["g++"]["state"] == "fail"
    assert "g++" in findings["g++"]["remedy"]
    assert findings["python"]["state"] == "ok"


def test_lines_for_people_end_with_what_is_missing(tmp_path):
    code, said = examine(PATH=str(tmp_path))
    assert code == 1
    assert "FAIL g++" in said
    assert "→ " in said
    assert "missing: " in said.splitlines()[-1]
    assert "\033" not in said


def test_a_machine_without_room_is_told(monkeypatch):
    monkeypatch.setattr(doctor, "MEMORY", 1 << 60)
    monkeypatch.setattr(doctor, "SHM", 1 << 60)
    monkeypatch.setattr(doctor, "DISK", 1 << 60)
    monkeypatch.chdir("/")
    assert (doctor.memory().state, doctor.shared_memory().state, doctor.disk().state) == ("warn", "warn", "fail")


@pytest.mark.parametrize("binary", ["/bin/true", "/no/such/etcd"])
def test_a_named_etcd_is_looked_at(monkeypatch, binary):
    monkeypatch.setenv("VNPU_ETCD_BINARY", binary)
    assert doctor.etcd().state == ("ok" if binary == "/bin/true" else "fail")


@pytest.mark.parametrize(("release", "state"), [("6.5.0-x", "ok"), ("6.18.4", "ok"), ("6.1.0-13-amd64", "warn")])
def test_old_kernels_are_told_what_they_lack(monkeypatch, release, state):
    monkeypatch.setattr(doctor.platform, "release", lambda: release)
    assert doctor.pidfds().state == state


def test_every_finding_that_is_not_ok_has_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = [check() for check in doctor.CHECKS]
    assert [finding.name for finding in findings if finding.state != "ok" and not finding.remedy] == []


def test_what_a_killed_node_left_is_listed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert doctor.leftovers().state == "ok"
    (tmp_path / ".vnpu").mkdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    parts = [{"name": "a", "pid": os.getpid()}, {"name": "b", "pid": dead.pid}, {"name": "c", "pid": 0}]
    (tmp_path / ".vnpu" / "run.json").write_text(json.dumps({"pid": dead.pid, "processes": parts}))
    finding = doctor.leftovers()
    assert finding.state == "warn"
    assert f"a ({os.getpid()})" in finding.found
    assert "b (" not in finding.found
    (tmp_path / ".vnpu" / "run.json").write_text(json.dumps({"pid": os.getpid(), "processes": parts}))
    assert doctor.leftovers().state == "ok"
