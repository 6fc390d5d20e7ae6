"""Writes the lock files beside it from the environment it runs in: `make lock`, after trying a new version by hand.

Each file is the complete closure of its roots, so that it is installed with `--no-deps`: what a machine gets is what is
written here. `engine.txt` leaves out what breaks, or is dead weight beside, a CPU build of torch; `runtime.txt` comes
before it, and each package stands in the first file that needs it.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())
LEFT_OUT = {"triton", "torchvision", "torchaudio", "torchcodec"}
"""PyPI's are built for CUDA: the first is 1 GB that CPU engines never load, the others break `import vllm`."""


def roots() -> dict[str, list[str]]:
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    extras = project["optional-dependencies"]
    dev = [name for group in groups.values() for name in group if isinstance(name, str)]
    return {
        "build": [*PROJECT["build-system"]["requires"], "cmake", "ninja"],
        "runtime": project["dependencies"],
        "engine": [*extras["engine"], "xgrammar"],
        "dev": [*extras["embedded"], *extras["demo"], *extras["mooncake"], *dev],
    }


def closure(names: Iterable[str]) -> dict[str, str]:
    """Every distribution that is needed, by canonical name, with its version here."""
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(name) for name in names]
    while todo:
        wanted = todo.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if name in LEFT_OUT or (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found[name] = distribution(name).version
        except PackageNotFoundError:
            sys.exit(f"lock: {name} is needed and not installed here")
        todo += _needs(name, extras)
    return found


def _needs(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    for text in distribution(name).requires or ():
        needed = Requirement(text)
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            yield needed


def main() -> None:
    written: set[str] = set()
    for group, names in roots().items():
        packages = closure(names)
        lines = [f"{name}=={packages[name]}\n" for name in sorted(packages) if name not in written]
        head = f"# The complete closure of: {', '.join(names)}. Written by lock.py; installed with --no-deps.\n"
        (HERE / f"{group}.txt").write_text(head + "".join(lines))
        if group != "build":  # built in an environment of its own in the images
            written |= set(packages)
        print(f"{group}.txt: {len(lines)} packages")


if __name__ == "__main__":
    main()
