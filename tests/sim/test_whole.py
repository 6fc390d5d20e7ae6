"""The whole system, real code throughout, in virtual time: one history for each seed, and those that once went wrong.

`SEEDS` and `FIRST_SEED` in the environment run others; `make sim SEEDS=10000` runs many on all cores.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest

from native.fences import Fences
from tests.helpers.whole.__main__ import many
from tests.helpers.whole.machine import Violated
from tests.helpers.whole.plan import FAULTS, Plan, history, planned
from tests.helpers.whole.shrink import fails, minimal, told

FIRST_SEED = int(os.environ.get("FIRST_SEED", "0"))
SEEDS = int(os.environ.get("SEEDS", "500"))
LONG = 2000
KEPT = sorted((Path(__file__).parent / "histories").glob("*.json"))
CORES = os.cpu_count() or 1


def _run(seeds: int) -> None:
    sums = many(FIRST_SEED, seeds, CORES)
    if sums.wrong is not None:
        seed, wrong = sums.wrong
        pytest.fail(told(minimal(planned(seed), wrong)))
    sys.stdout.write(sums.means())
    assert sums.events / sums.seeds >= 300
    assert sums.faults / sums.seeds >= 5
    assert sums.switches / sums.seeds >= 3


@pytest.mark.timeout(1200)
def test_seeds() -> None:
    _run(SEEDS)


@pytest.mark.system
@pytest.mark.timeout(3600)
def test_many_seeds() -> None:
    _run(LONG)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_histories(path: Path) -> None:
    """What once went wrong does not go wrong again."""
    history(msgspec.json.decode(path.read_bytes(), type=Plan))


def test_an_order_that_is_given_when_nothing_breaks_any_more_is_answered() -> None:
    """In history 3169 an engine that a daemon had welcomed just before its death waited for the dead one for ever."""
    for seed in range(3160, 3180):
        assert history(planned(seed)).rude == []


def test_without_faults() -> None:
    for seed in range(10):
        world = history(planned(seed, faults=False))
        assert world.switches >= 1


def test_a_seed_is_a_history() -> None:
    """The same seed gives the same story, word for word."""
    stories = [history(planned(11)).story for _ in range(2)]
    assert stories[0] == stories[1]
    assert len(stories[0]) > 10


def test_every_fault_comes() -> None:
    assert {act.what for seed in range(60) for act in planned(seed).acts} >= set(FAULTS)


def test_the_simulation_notices_and_finds_the_least_that_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon whose fences never close what was left is found, and what remains of the history is short."""
    monkeypatch.setattr(Fences, "_close", lambda self, revision: None)
    plan = planned(0, faults=False)
    wrong = fails(plan)
    assert wrong
    least = minimal(plan, wrong, 12)
    assert fails(least)
    assert len(least.acts) < len(plan.acts)
    with pytest.raises(Violated):
        history(least)
    assert "seed 0" in told(least)
