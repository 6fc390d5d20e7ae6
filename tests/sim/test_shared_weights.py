"""Models of the same weights on one device: charged once, so they are resident together where two copies do not fit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.core.model import Bytes, Phase
from coordinator.core.settings import Settings
from tests.helpers.sim.engine import Kind
from tests.helpers.sim.scenario import SETTLE_S, live, probe, settled
from tests.helpers.sim.world import World

CAPACITY = 60
WEIGHTS = Bytes(weights=40, kv=8)
TWINS = tuple(Kind(model, ("n/0",), WEIGHTS, boot_s=0.5, digest="same") for model in ("a", "b"))
OTHER = Kind("c", ("n/0",), Bytes(weights=30, kv=6), boot_s=0.5)


def world(seed: int = 1) -> World:
    made = World(seed, {"n/0": CAPACITY}, (*TWINS, OTHER), settings=Settings(keep_alive=None, min_residency=1.0))
    made.run(20.0)
    return made


def resident(made: World) -> set[str]:
    return {model for model, engine in made.engines.items() if engine.phase is Phase.RESIDENT}


def ask(made: World, *models: str) -> None:
    for model in models:
        request = made.request(model)
        made.run(10.0)
        made.check()
        assert request.ended == "served", made.story[-20:]


def test_sharing_lets_both_be_resident_and_nobody_leaves_for_it() -> None:
    made = world()
    ask(made, "c", "a")
    assert resident(made) == {"a"}
    ask(made, "b")
    assert resident(made) == {"a", "b"}
    assert made.device("n/0").mapped == 40 + 8 + 8
    ask(made, "a", "b", "a")
    assert resident(made) == {"a", "b"}


@pytest.mark.parametrize("victim", ["a", "b"])
def test_who_stays_is_charged_when_the_other_dies_and_all_of_it_is_had_in_the_end(victim: str) -> None:
    made = world()
    ask(made, "a", "b")
    made.crash(made.engines[victim])
    made.run(1.0)
    assert made.device("n/0").mapped == 40 + 8
    ask(made, "c")  # who stayed leaves for it, with the weights (and the dead one starts anew afterwards)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**20))
def test_capacity_is_never_exceeded_and_everybody_is_served(seed: int) -> None:
    """Under faults, after every step (`World.check`); and when nothing breaks any more."""
    made = world(seed)
    live(made, 30.0, faults=True)
    made.heal()
    made.run(SETTLE_S)
    settled(made)
    probe(made)
