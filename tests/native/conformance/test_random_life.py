"""Random sequences of operations, with importers that are killed and calls that fail: driver, library and a model agree
after each step. A failure names its seed; `SEEDS` (each driver) and `FIRST_SEED` in the environment run others."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from native._native import Driver
from tests.helpers.driver_life import Life
from tests.helpers.drivers import CASES, DriverCase
from tests.helpers.window import Window
from tests.helpers.zygote import Zygote

FIRST_SEED = int(os.environ.get("FIRST_SEED", "0"))
SEEDS = int(os.environ.get("SEEDS", "100"))
BLOCK = 20
STEPS = 40
SOME = tuple(case for case in CASES if case.id != "host-memfd")  # one host driver is enough here


@pytest.fixture(scope="module", params=SOME, ids=lambda case: case.id)
def life_case(request: pytest.FixtureRequest) -> DriverCase:
    kind: DriverCase = request.param
    return kind


@pytest.fixture
def case(life_case: DriverCase) -> DriverCase:
    return life_case


@pytest.fixture(scope="module")
def zygote(life_case: DriverCase) -> Iterator[Zygote]:
    with Zygote(life_case.id, life_case.environment()) as opened:
        yield opened


@pytest.mark.parametrize("first", range(FIRST_SEED, FIRST_SEED + SEEDS, BLOCK))
def test_three_accounts_agree(case: DriverCase, driver: Driver, window: Window, zygote: Zygote, first: int) -> None:
    driver.destroy(driver.create(2 * driver.granularity))  # so that what the driver keeps for itself is large enough
    for seed in range(first, min(first + BLOCK, FIRST_SEED + SEEDS)):
        life = Life(case, driver, window, zygote, seed)
        try:
            for _ in range(STEPS):
                life.step()
            life.end()
        except Exception as error:
            error.add_note(f"seed {seed}: {', '.join(life.told)}")
            raise
