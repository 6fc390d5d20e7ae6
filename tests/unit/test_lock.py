"""docker/requirements/ pins what pyproject.toml asks for, and the recipe redoes only what has changed."""

from __future__ import annotations

import importlib.util
import re
import threading
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "requirements"


def script(name: str):
    """A script that is no module of the package."""
    spec = importlib.util.spec_from_file_location(f"requirements_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(group: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", (FOLDER / f"{group}.txt").read_text(), re.MULTILINE))


@pytest.mark.parametrize("group", ["build", "runtime", "engine", "dev"])
def test_every_root_is_pinned_within_its_bounds(group):
    pinned = {**pins("runtime"), **pins("engine"), **pins(group)}
    for name in script("lock").roots()[group]:
        wanted = Requirement(name)
        version = pinned.get(canonicalize_name(wanted.name))
        assert version, f"{name} is not in {group}.txt: make lock"
        assert wanted.specifier.contains(version), f"{name} is pinned to {version}: make lock"


def test_what_breaks_a_cpu_build_is_left_out():
    everything = {name for group in ("build", "runtime", "engine", "dev") for name in pins(group)}
    assert not everything & script("lock").LEFT_OUT
    assert pins("engine")["torch"].endswith("+cpu")


class Steps:
    """A set-up whose four steps only take notes."""

    def __init__(self, venv: Path) -> None:
        self.setup = script("venv").Setup(venv, "python3.11")
        self.done: list[str] = []
        for step in ("environment", "packages", "project", "check"):
            setattr(self.setup, f"_{step}", lambda *_, step=step: self._do(step))
        self.setup._version = lambda python: "3.11.7"
        self.venv = venv
        self.fails = ""

    def _do(self, step: str) -> None:
        self.venv.mkdir(exist_ok=True)
        if step == self.fails:
            raise self.setup.run.__globals__["Failed"]("no")
        self.done.append(step)

    def run(self) -> list[str]:
        self.done.clear()
        self.setup.run()
        return list(self.done)


def test_steps_are_redone_only_from_where_something_changed(tmp_path):
    steps = Steps(tmp_path / "venv")
    assert steps.run() == ["environment", "packages", "project", "check"]
    assert steps.run() == []
    (steps.setup.stamps / "3").unlink()
    assert steps.run() == ["project", "check"]
    (steps.setup.stamps / "2").write_text("of other lock files")
    assert steps.run() == ["packages", "project", "check"]
    steps.setup._version = lambda python: "3.11.9"
    assert steps.run() == ["environment", "packages", "project", "check"]


def test_a_step_that_failed_is_tried_again(tmp_path):
    steps = Steps(tmp_path / "venv")
    steps.fails = "project"
    with pytest.raises(Exception, match=r"\[3/4\] vnpu"):
        steps.run()
    steps.fails = ""
    assert steps.run() == ["project", "check"]


def test_another_python_is_refused_with_the_way_out(tmp_path):
    module = script("venv")
    setup = module.Setup(tmp_path / "venv", "/no/such/python")
    with pytest.raises(module.Failed, match=r"cannot be run.*needs Python 3\.11.*make doctor"):
        setup.run()


def test_torch_is_asked_for_where_its_cpu_build_is(tmp_path, capsys):
    setup = script("venv").Setup(tmp_path / "venv", "python3.11")
    setup.log = tmp_path / "log"
    asked: list[list[str]] = []

    def pip(words: list[str], **_: object) -> None:
        asked.append(words)
        if len(asked) == 1:
            setup.log.write_text("ERROR: No matching distribution found for torch==2.13.0+cpu\n")
            raise setup.run.__globals__["Failed"]("")

    setup._pip = pip
    setup._packages([FOLDER / "engine.txt"])
    assert "--extra-index-url" not in asked[0]
    assert asked[1][asked[1].index("--extra-index-url") + 1] == "https://download.pytorch.org/whl/cpu"


def test_a_second_setup_of_the_same_checkout_waits(tmp_path, capfd):
    module = script("venv")
    order: list[str] = []

    def second() -> None:
        with module._alone(tmp_path):
            order.append("second")

    with module._alone(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        while "waiting for another set-up" not in capfd.readouterr().out:
            thread.join(0.01)
            assert thread.is_alive()
        order.append("first")
    thread.join(60.0)
    assert order == ["first", "second"]
