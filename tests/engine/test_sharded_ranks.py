"""vLLM's own linear classes, shared by broadcast among real processes over gloo: two ranks and four."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 600.0

pytestmark = [pytest.mark.engine, pytest.mark.system, pytest.mark.timeout(2 * PATIENCE_S)]


def run(folder: Path, ranks: int, case: str) -> list[dict[str, Any]]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("VNPU_")},
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, str(ROOT / "tests/helpers/linear_ranks.py"), str(folder), str(ranks), case]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_outputs_are_identical_and_each_rank_keeps_what_was_predicted(tmp_path: Path, ranks: int) -> None:
    """Seven layers over two or four ranks: uneven. Merged, replicated with bias, and rearranged int8 with scales."""
    for found in run(tmp_path, ranks, "whole"):
        assert found["equal"] == [True] * 9
        assert found["processed"] == [1] * 7
        assert found["bytes"] == found["predicted"]
        assert found["biases"] == [96] * 7
        assert found["together"] is False
        refused = found["refusals"]
        assert refused["free"] == ""
        assert "again" not in refused
        assert refused["tied"] == refused["tied_too"] == "it is tied: another part of the model uses the same weight"
        assert "tensor parallelism has spread it" in refused["spread"]


def test_many_passes_and_sleeps_leave_nothing_behind(tmp_path: Path) -> None:
    """A layer that stayed behind in each cycle would be 39 layers; one in each pass, three times that."""
    for found in run(tmp_path, 2, "long"):
        first, last = found["kept"]
        assert last.pop("heap") - first.pop("heap") < found["series"] // 2
        assert last == first


def test_a_rank_that_stays_away_is_named_with_the_layer_within_the_deadline(tmp_path: Path) -> None:
    first, _ = run(tmp_path, 2, "apart")
    assert "rank 0 waited 2 s at layers." in first["error"]
    assert re.search("for rank 1(, its owner| to take it)", first["error"])
