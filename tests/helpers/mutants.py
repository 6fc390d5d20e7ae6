"""Planted bugs: patch files that are applied by their text alone, so that code around them may move.

A hunk's old lines, context included, must occur exactly once in its file; line numbers mean nothing.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "mutants"
SIMULATION = "simulation"
_COPIED = ("coordinator", "engine_patch", "native", "transfer", "tests")


class Misfit(Exception):
    """A patch does not fit the code any more; the message says where."""


class Hunk(msgspec.Struct, frozen=True):
    path: str
    old: str
    new: str


class Mutant(msgspec.Struct, frozen=True):
    """`what` is wrong with it; `seen_by` says who notices: the simulation, or a test's path."""

    name: str
    what: str
    seen_by: str
    hunks: tuple[Hunk, ...]


def mutants() -> list[Mutant]:
    return [parse(path) for path in sorted(FOLDER.glob("*.patch"))]


def parse(path: Path) -> Mutant:
    """Raises Misfit."""
    head, _, body = path.read_text().partition("\n\n")
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    hunks: list[Hunk] = []
    file, old, new = "", [""], [""]

    def flush() -> None:
        if old[0] or new[0]:
            hunks.append(Hunk(file, old[0], new[0]))
        old[0] = new[0] = ""

    for line in body.splitlines(keepends=True):
        if line.startswith("--- a/"):
            flush()
        elif line.startswith("+++ b/"):
            file = line[6:].strip()
        elif line.startswith("@@"):
            flush()
        else:
            old[0] += line[1:] if line[0] in " -" else ""
            new[0] += line[1:] if line[0] in " +" else ""
    flush()
    if not hunks or not {"What", "Seen by"} <= fields.keys():
        raise Misfit(f"{path.name} is no mutant: it needs `What:`, `Seen by:` and a diff")
    return Mutant(path.stem, fields["What"], fields["Seen by"], tuple(hunks))


def mutated(mutant: Mutant, root: Path = ROOT) -> dict[str, str]:
    """The files it changes, by path, as they are then. Raises Misfit."""
    files: dict[str, str] = {}
    for hunk in mutant.hunks:
        text = files.get(hunk.path) or (root / hunk.path).read_text()
        if (found := text.count(hunk.old)) != 1:
            raise Misfit(f"{mutant.name}: {hunk.path} has {found} places like this:\n{hunk.old}")
        files[hunk.path] = text.replace(hunk.old, hunk.new)
    return files


def plant(mutant: Mutant, folder: Path, extension: Path) -> None:
    """A copy of the code with the bug in it. `extension`: the built C++ module."""
    ignored = shutil.ignore_patterns("__pycache__", "csrc", "*.so", "mutants")
    for name in _COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "native" / extension.name).symlink_to(extension)
    for path, text in mutated(mutant).items():
        (folder / path).write_text(text)
