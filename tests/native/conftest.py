from __future__ import annotations

from collections.abc import Iterator

import pytest

from native._native import Driver
from tests.helpers.drivers import CASES, DriverCase


@pytest.fixture(params=CASES, ids=lambda case: case.id)
def case(request: pytest.FixtureRequest) -> DriverCase:
    """A kind of driver."""
    kind: DriverCase = request.param
    return kind


@pytest.fixture
def driver(case: DriverCase) -> Iterator[Driver]:
    """A driver on which the test leaves nothing behind."""
    opened = case.open()
    yield opened
    stats = opened.stats()
    assert (stats.handles, stats.reservations, stats.mapped_bytes) == (0, 0, 0), "the test leaves something behind"


@pytest.fixture
def chunk(driver: Driver) -> int:
    """The smallest chunk size, in bytes."""
    return driver.granularity
