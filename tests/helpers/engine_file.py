"""What files have in common whose tests share real engines that take long to start."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coordinator.cli.make_model import Recipe, make_model


def marks(timeout_s: int = 1800) -> list[pytest.MarkDecorator]:
    """`pytestmark` of such a file: one event loop for all of it, and seconds that a test may take."""
    return [
        pytest.mark.engine,
        pytest.mark.system,
        pytest.mark.timeout(timeout_s),
        pytest.mark.asyncio(loop_scope="module"),
    ]


async def made(path: Path, arch: str, size: str = "tiny") -> Path:
    """A model of random weights at `path`."""
    await asyncio.to_thread(make_model, path, Recipe(arch=arch, size=size), as_json=True)
    return path
