"""Completion scripts: bash runs its own, and what it offers is what there is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from coordinator.cli.completion import SHELLS
from coordinator.cli.watch import COMMANDS, OPTIONS, command_line, main, understood
from coordinator.errors import ConfigError


def offered(tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> set[str]:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "vnpu-watch").write_text("#!/bin/sh\necho qwen-a; echo llama-b\n")
    (tmp_path / "vnpu-watch").chmod(0o755)
    line = " ".join(f"'{word}'" for word in words)
    asks = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _vnpu_watch; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(
        ["bash", "-c", capsys.readouterr().out + asks],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return set(done.stdout.split())


def test_bash_completes_commands_models_options_and_shells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert offered(tmp_path, capsys, "vnpu-watch", "") == set(COMMANDS)
    assert offered(tmp_path, capsys, "vnpu-watch", "pin", "") == {"qwen-a", "llama-b"}
    assert offered(tmp_path, capsys, "vnpu-watch", "why", "q") == {"qwen-a"}
    assert offered(tmp_path, capsys, "vnpu-watch", "top", "--on") == {"--once"}
    assert offered(tmp_path, capsys, "vnpu-watch", "completion", "") == set(SHELLS)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "vnpu-watch" in capsys.readouterr().out


def test_the_options_are_those_of_the_parser() -> None:
    said = [option for action in command_line()._actions for option in action.option_strings]
    known = {option for option in said if option.startswith("--")}
    assert known == set(OPTIONS)


@pytest.mark.parametrize(
    "words", [["fly"], ["why"], ["why", "a", "b"], ["pin"], ["ps", "a"], ["completion"], ["completion", "tcsh"]]
)
def test_words_that_mean_nothing_are_refused_with_what_does(words: list[str]) -> None:
    with pytest.raises(ConfigError):
        understood(words, once=False, as_json=False)


def test_no_word_is_the_live_screen() -> None:
    assert understood([], once=True, as_json=False).command == "top"
