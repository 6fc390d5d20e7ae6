"""Which way imports point (DESIGN §7), and what is pure: read from the syntax trees, nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("coordinator", "engine_patch", "native", "transfer")

CORE_MAY = {"__future__", "collections", "enum", "heapq", "itertools", "math", "msgspec", "typing"}
IMPURE = {"asyncio", "logging", "os", "random", "secrets", "socket", "subprocess", "threading", "time"}
PURE = (
    "engine_patch/lifecycle.py",
    "engine_patch/sharded_linear/series.py",
    "engine_patch/sharded_linear/window.py",
    "native/fences.py",
    "native/pool.py",
    "transfer/netloader/identity.py",
    "transfer/netloader/manifest.py",
    "transfer/netloader/plan.py",
    "transfer/kv/boxes.py",
    "transfer/kv/coverage.py",
    "transfer/kv/layout.py",
    "transfer/kv/messages.py",
    "transfer/kv/plan.py",
    "transfer/kv/sink.py",
    "transfer/kv/source.py",
    "transfer/transports/bucket.py",
    "transfer/transports/frame.py",
    "transfer/transports/handshake.py",
)

FACES = ("coordinator.store", "coordinator.core.model", "coordinator.core.events", "coordinator.errors")
"""What the coordinator shows to others: the store, the values and facts that stand in it, the root of all errors."""
MAY: dict[str, tuple[str, ...]] = {
    "coordinator.core": ("coordinator.core", "coordinator.errors"),
    "coordinator.store": (
        "coordinator.store",
        "coordinator.core.model",
        "coordinator.core.process",
        "coordinator.core.events",
        "coordinator.errors",
    ),
    "coordinator": ("coordinator",),
    "native.daemon": ("native", *FACES),
    "native": ("native",),
    "transfer": ("transfer", "native"),
    "engine_patch": ("engine_patch", "transfer", "native", *FACES),
}
"""What a package may import of ours; the longest name that fits counts."""


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Full names, wherever in the file; `from a import b` is both `a` and, where it is a module of ours, `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative import of {node.module}"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inner if is_module(name)]
            yield from modules or [node.module]


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return within(name, OURS) and (path.with_suffix(".py").exists() or path.is_dir())


def sources() -> list[Path]:
    return sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


def wrong_directions(path: Path) -> list[str]:
    module = module_of(path)
    package = max((name for name in MAY if within(module, (name,))), key=len)
    return [name for name in imports(path) if within(name, OURS) and not within(name, MAY[package])]


def impure(path: Path, *, core: bool) -> list[str]:
    outside = [name.partition(".")[0] for name in imports(path) if not within(name, OURS)]
    return [name for name in outside if (name not in CORE_MAY if core else name in IMPURE)]


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_imports_point_one_way(path: Path) -> None:
    assert wrong_directions(path) == []


@pytest.mark.parametrize("path", sorted((ROOT / "coordinator/core").rglob("*.py")), ids=module_of)
def test_the_core_is_pure(path: Path) -> None:
    """Of the standard library only what has no effect; and no clock, chance or input by a built-in either."""
    assert impure(path, core=True) == []
    called = {node.func.id for node in ast.walk(ast.parse(path.read_text())) if _called(node)}  # type: ignore[attr-defined]
    assert not called & {"open", "print", "input", "exec", "eval", "__import__"}


def _called(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


@pytest.mark.parametrize("name", PURE)
def test_pure_parts_elsewhere(name: str) -> None:
    assert impure(ROOT / name, core=False) == []


def test_the_packages_import_nothing_by_themselves() -> None:
    """So that `import coordinator.core.model` costs nothing in an engine."""
    assert list(imports(ROOT / "coordinator/__init__.py")) == []
    assert list(imports(ROOT / "coordinator/core/__init__.py")) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("coordinator/core/x.py", "import native"),
        ("coordinator/core/x.py", "from coordinator import runtime"),
        ("coordinator/x.py", "from engine_patch.agent import Agent"),
        ("native/x.py", "from coordinator.core.model import Bytes"),
        ("native/daemon/x.py", "from coordinator.core.scheduler import Scheduler"),
        ("transfer/x.py", "import coordinator.store.base"),
        ("engine_patch/x.py", "from coordinator.core import scheduler"),
    ],
)
def test_a_wrong_direction_is_noticed(module: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / module
    path.parent.mkdir(parents=True)
    path.write_text(line)
    for name in ("coordinator/runtime.py", "coordinator/core/scheduler.py"):
        known = tmp_path / name
        known.parent.mkdir(parents=True, exist_ok=True)
        known.touch()
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert wrong_directions(path)


@pytest.mark.parametrize(
    "line", ["import time", "from random import Random", "from asyncio import sleep", "import uuid"]
)
def test_an_impure_core_is_noticed(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.py"
    path.write_text(line)
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert impure(path, core=True)
