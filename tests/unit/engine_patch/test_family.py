"""No process of an engine outlives its parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from engine_patch import family
from tests.helpers.processes import wait_gone

ROOT = Path(__file__).resolve().parents[3]


def test_a_child_dies_with_its_parent():
    command = [sys.executable, str(ROOT / "tests/helpers/parent.py")]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        wait_gone(child)


def test_the_api_server_is_no_child_and_is_left_alone():
    assert not family.is_child()
    family.die_with_parent()
