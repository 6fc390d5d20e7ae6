"""`vnpu simulate` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinator.cli.main import main

FLEET = """\
devices: [{id: n/0, capacity: 10GB, restore: 1GB}]
models:
  a: {weights: 8GB}
  b: {weights: 8GB}
"""


def test_a_generated_trace_under_two_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot, kept = tmp_path / "p.svg", tmp_path / "t.jsonl"
    words = ["simulate", "--trace", "tail:3", "--requests", "30", "--policy", "lru,cost_aware+predict", "--json"]
    assert main([*words, "--plot", str(plot), "--write-trace", str(kept)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [outcome["policy"] for outcome in found["outcomes"]] == ["lru", "cost_aware+predict"]
    assert (found["requests"], found["exact"]) == (30, True)
    assert plot.read_text().startswith("<svg")
    assert len(kept.read_text().splitlines()) == 30


def test_a_trace_and_a_fleet_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fleet.yaml").write_text(FLEET)
    (tmp_path / "t.jsonl").write_text("".join(f'{{"t": {20 * n}, "model": "{"ab"[n % 2]}"}}\n' for n in range(6)))
    assert main(["simulate", "--trace", str(tmp_path / "t.jsonl"), "--fleet", str(tmp_path / "fleet.yaml")]) == 0
    said = capsys.readouterr().out
    assert "optimum: 48.3 s of restores" in said
    assert "1.00" in said


def test_a_generator_for_a_fleet_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fleet.yaml").write_text(FLEET.replace("8GB}", "4GB}"))
    words = ["simulate", "--trace", "tail:1", "--fleet", str(tmp_path / "fleet.yaml"), "--requests", "10", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["outcomes"][0]["restores"] <= 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trace", "tail:x"], "'x' is no seed"),
        (["--trace", "nowhere.jsonl"], "nowhere.jsonl is no generator, and a trace needs a fleet"),
        (["--trace", "tail:1", "--policy", "mru"], "no policy is called 'mru'"),
        (["--trace", "tail:1", "--fleet", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["--trace", "tail:1", "--requests", "0"], "--requests: 0 is not between 1 and"),
        (["--trace", "tail:1", "--models", "0"], "--models: 0 is not between 1 and"),
        (["--trace", "tail:1", "--plot", "p.png"], "--plot: p.png is no name for an SVG picture"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_plot_that_cannot_be_written_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "--trace", "tail:1", "--requests", "5", "--plot", str(tmp_path / "no" / "p.svg")]
    assert main(words) == 1
    assert "cannot be written" in capsys.readouterr().err
