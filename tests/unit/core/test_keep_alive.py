"""What requests say of their model's time on the device, against the file and the operator."""

from __future__ import annotations

import pytest

from coordinator.core.commands import Grant
from coordinator.core.events import DemandSeen, Listed
from coordinator.core.model import FOREVER, Demand, ModelId, Order, Phase, Policy
from coordinator.core.settings import Settings
from tests.helpers.stage import Stage, only, orders

OFFLOAD = Order.OFFLOAD
A = ModelId("a")


def resident(keep_alive: float | None = 30.0) -> Stage:
    """A model that has been idle since second 100."""
    stage = Stage(settings=Settings(keep_alive=keep_alive, min_residency=2.0))
    stage.engine("a", Phase.RESIDENT, weights=60)
    return stage


@pytest.mark.parametrize(("asked", "leaves"), [(0.0, 102.0), (5.0, 105.0), (3600.0, 3700.0)])
def test_a_request_goes_before_the_file(asked: float, leaves: float) -> None:
    stage = resident()
    assert orders(stage.keep("a", asked)) == []
    assert orders(stage.at(leaves - 0.1)) == []
    grant = only(Grant, stage.at(leaves))
    assert (grant.order, f"kept alive for {asked:g} s" in grant.decision.cause) == (OFFLOAD, True)


def test_for_ever_is_until_its_memory_is_needed() -> None:
    stage = resident()
    stage.keep("a", FOREVER)
    assert stage.scheduler.settings(A).keep_alive is None
    assert orders(stage.at(1e6)) == []
    stage.engine("b", weights=60)
    assert orders(stage.demand("b", 1)) == [(OFFLOAD, "a")]


def test_a_request_shortens_for_ever_too() -> None:
    stage = resident(None)
    stage.keep("a", 5.0)
    assert orders(stage.at(105.0)) == [(OFFLOAD, "a")]


def test_it_does_not_end_what_still_works() -> None:
    stage = resident()
    stage.now = 110.0
    stage.load("a", running=1)
    assert orders(stage.keep("a", 0.0)) == []
    assert orders(stage.at(200.0)) == []
    assert orders(stage.load("a")) == [(OFFLOAD, "a")]


def test_the_operator_goes_before_requests() -> None:
    stage = resident()
    stage.policy("a", Policy(keep_alive=50.0))
    stage.keep("a", 5.0)
    assert orders(stage.at(149.9)) == []
    assert orders(stage.at(150.0)) == [(OFFLOAD, "a")]


def test_a_pinned_model_stays() -> None:
    stage = resident()
    stage.policy("a", Policy(pin=True))
    stage.keep("a", 0.0)
    assert orders(stage.at(1e6)) == []


def test_once_it_is_over_the_file_holds_again() -> None:
    stage = resident()
    stage.keep("a", FOREVER)
    stage.keep("a", None)
    assert orders(stage.at(129.9)) == []
    assert orders(stage.at(130.0)) == [(OFFLOAD, "a")]


def test_of_several_gateways_the_longest_holds_whoever_speaks_last() -> None:
    stage = resident()
    stage.keep("a", 90.0, "g1")
    stage.keep("a", 5.0, "g2")
    assert stage.scheduler.settings(A).keep_alive == 90.0
    stage.keep("a", None, "g1")
    assert stage.scheduler.settings(A).keep_alive == 5.0


def test_what_other_gateways_say_ends_with_their_keys() -> None:
    stage = resident()
    stage.keep("a", 60.0, "here")
    stage.next()
    stage.see(DemandSeen("far", A, Demand(waiting=0, keep_alive=FOREVER)))
    assert stage.scheduler.settings(A).keep_alive is None
    assert stage.scheduler.view().models[0].settings.keep_alive is None
    stage.hear(Listed((), stage.next()))
    assert stage.scheduler.settings(A).keep_alive == 60.0


def test_a_gateway_that_comes_back_has_said_nothing_yet() -> None:
    stage = resident()
    stage.next()
    stage.see(DemandSeen("here", A, Demand(waiting=0, keep_alive=FOREVER)))
    assert orders(stage.at(1000.0)) == []
    assert orders(stage.demand("b", 0)) == [(OFFLOAD, "a")]
