from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.acl import Acl
from tests.helpers.cu import Cu
from tests.helpers.simulator import Simulator


def held(books: dict[str, Any]) -> dict[str, Any]:
    return {**books["process"], "used": books["used"]}


@pytest.fixture(scope="session")
def ascend() -> Simulator:
    return Simulator("ascend")


@pytest.fixture(scope="session")
def cuda() -> Simulator:
    return Simulator("cuda")


@pytest.fixture
def acl(ascend: Simulator) -> Iterator[Acl]:
    """The simulated libascendcl, on which a test leaves nothing behind."""
    opened = Acl(ascend)
    before = held(ascend.books())
    yield opened
    assert held(ascend.books()) == before


@pytest.fixture
def cu(cuda: Simulator) -> Iterator[Cu]:
    """The simulated libcuda, on which a test leaves nothing behind."""
    opened = Cu(cuda)
    before = held(cuda.books())
    yield opened
    assert held(cuda.books()) == before
    opened.ok("cuCtxPopCurrent_v2", None)
