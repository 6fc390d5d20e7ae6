"""Every file of `examples/` is sound, says how it is run, and stands in the list."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from coordinator import config
from coordinator.cli import main as cli
from coordinator.placement import engines
from tests.helpers.model_folder import model_folder

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
ENGINES = {
    "two-models": ["a", "b"],
    "lazy": ["daily", "monthly", "yearly"],
    "tensor-parallel": ["either@0", "either@1", "left", "wide"],
    "roles": ["chat", "chat@prefill"],
    "production": ["assistant", "batch"],
}
WEIGHTS = 5 << 20
"""More than `vnpu make-model` writes by default."""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_sound_and_makes_the_engines_it_speaks_of(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VNPU_ADMIN_KEY", "k")
    for name in ("a", "b"):
        model_folder(tmp_path / "models" / name, WEIGHTS)
    shutil.copy(example, tmp_path)

    assert cli.main(["config", "check", str(tmp_path / example.name)]) == 0, capsys.readouterr().out
    assert sorted(engines(config.load(tmp_path / example.name, {"VNPU_ADMIN_KEY": "k"}))) == ENGINES[example.stem]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_how_it_is_run(example: Path) -> None:
    head = example.read_text().partition("\ndevices:")[0]

    assert f"--config examples/{example.name}" in head
    for folder in re.findall(r"path: \./(\S+?)[,}\s]", example.read_text()):
        assert f"vnpu make-model examples/{folder}" in head or example.stem == "production"


def test_the_list_has_every_example_and_no_other() -> None:
    listed = re.findall(r"^\| \[([^\]]+)\]", (ROOT / "examples" / "README.md").read_text(), re.MULTILINE)

    assert sorted(listed) == [path.name for path in EXAMPLES]


def test_two_models_do_not_fit_together_so_that_they_take_turns(tmp_path: Path) -> None:
    for name in ("a", "b"):
        model_folder(tmp_path / "models" / name, WEIGHTS)
    shutil.copy(ROOT / "examples" / "two-models.yaml", tmp_path)
    loaded = config.load(tmp_path / "two-models.yaml", {})

    assert sum(WEIGHTS + model.kv_cache for model in loaded.models.values()) > loaded.devices[0].lent
