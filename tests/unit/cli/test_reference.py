"""docs/cli.md knows every command and every option."""

from __future__ import annotations

import re
from pathlib import Path

from coordinator.cli.main import COMMANDS
from coordinator.cli.reference import page

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"


def parts(text: str) -> dict[str, set[str]]:
    """Options by command."""
    found = (part.partition("\n") for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:])
    return {name: set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", body)) for name, _, body in found}


def test_the_page_has_every_command_with_its_options() -> None:
    assert parts(PAGE.read_text()) == parts(page()), "run: python -m coordinator.cli.reference > docs/cli.md"


def test_every_command_has_its_part() -> None:
    assert parts(page()).keys() == {"vnpu", "vnpu-watch", *(f"vnpu {name}" for name in COMMANDS)}
