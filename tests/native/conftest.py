from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from native._native import Driver, DriverError, DriverStats
from tests.helpers.drivers import CASES, DriverCase
from tests.helpers.window import Window


@pytest.fixture(params=CASES, ids=lambda case: case.id)
def case(request: pytest.FixtureRequest) -> DriverCase:
    """A kind of driver."""
    kind: DriverCase = request.param
    return kind


Facts = Callable[[], dict[str, Any]]


@pytest.fixture(scope="session")
def cheap_collections() -> Iterator[None]:
    """What is there already is not looked through by each `gc.collect` of `driver`."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def facts(case: DriverCase, driver: Driver) -> Facts:
    """What the driver says it holds, and on a simulator what that says this process holds."""
    return lambda: held(case, driver)


def held(case: DriverCase, driver: Driver) -> dict[str, Any]:
    stats = driver.stats()
    said: dict[str, Any] = {name: getattr(stats, name) for name in dir(DriverStats) if not name.startswith("_")}
    simulator = case.simulator()
    if simulator is not None:
        books = simulator.books()
        said |= {"card": books["process"], "used": books["used"]}
    return said


@pytest.fixture
def driver(case: DriverCase, cheap_collections: None) -> Iterator[Driver]:
    """A driver on which the test leaves nothing behind."""
    gc.collect()  # drivers that ended tests still refer to: the card counts for the whole process
    opened = case.open()
    opened.destroy(opened.create(opened.granularity))  # so that what a driver keeps for itself is there already
    before = held(case, opened)
    yield opened
    gc.collect()
    assert held(case, opened) == before, "the test leaves something behind"


@pytest.fixture
def chunk(driver: Driver) -> int:
    """The smallest chunk size, in bytes."""
    return driver.granularity


@pytest.fixture
def window(driver: Driver) -> Iterator[Window]:
    """To read and write what the driver has mapped."""
    opened = Window(driver)
    yield opened
    opened.close()


@pytest.fixture
def base(driver: Driver, chunk: int) -> Iterator[int]:
    """A reservation of four chunks."""
    address = driver.reserve(4 * chunk)
    yield address
    driver.release(address)


@pytest.fixture
def handles(driver: Driver, chunk: int) -> Iterator[list[int]]:
    """Three own chunks."""
    created = [driver.create(chunk) for _ in range(3)]
    yield created
    for handle in created:
        driver.destroy(handle)


Refused = Callable[..., DriverError]


@pytest.fixture
def refused(driver: Driver, facts: Facts) -> Refused:
    """Make a call that must be refused, and see that it changed nothing and says what to do."""

    def call(verb: str, *args: object) -> DriverError:
        before = facts()
        with pytest.raises(DriverError) as raised:
            getattr(driver, verb)(*args)
        assert facts() == before
        assert raised.value.remedy
        assert raised.value.remedy in str(raised.value)
        return raised.value

    return call
