"""The checker's program, once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.token_model import build


@pytest.fixture(scope="session")
def model() -> Path:
    return build(Path(__file__).parents[2] / "build" / "token-model")
