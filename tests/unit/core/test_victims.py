"""Who leaves when memory is needed, when, and who never does."""

from __future__ import annotations

import pytest

from coordinator.core.commands import Grant
from coordinator.core.model import Order, Phase, Policy
from coordinator.core.settings import Settings
from tests.helpers.stage import Stage, grants, only, orders, refusals

RESTORE, OFFLOAD = Order.RESTORE, Order.OFFLOAD


def resident(stage: Stage, *engines: str, weights: int = 40, devices: tuple[str, ...] = ("n/0",)) -> None:
    for engine in engines:
        stage.engine(engine, Phase.RESIDENT, weights=weights, devices=devices)
        stage.now += 1.0


def used(stage: Stage, engine: str) -> None:
    stage.load(engine, running=1)
    stage.load(engine)
    stage.now += 1.0


def test_the_least_recently_used_leaves() -> None:
    stage = Stage()
    resident(stage, "a", "b")
    used(stage, "a")
    stage.engine("c")
    offload = only(Grant, stage.demand("c", 1))
    assert offload.holder.engine == "b"
    assert [(c.engine, c.why) for c in offload.decision.candidates] == [
        ("b", "idle for 2.0 s"),
        ("a", "idle for 1.0 s"),
    ]
    assert offload.decision.cause == "room for c: 1 request waits for 0.00 s; b: idle for 2.0 s"


def test_idle_before_busy() -> None:
    stage = Stage()
    resident(stage, "a", "b")
    stage.load("a", running=1)
    used(stage, "b")
    stage.engine("c")
    assert orders(stage.demand("c", 1)) == [(OFFLOAD, "b")]


def test_a_model_that_is_waited_for_at_a_gateway_is_busy() -> None:
    stage = Stage()
    resident(stage, "a", "b")
    stage.demand("a", 1)
    stage.engine("c")
    assert orders(stage.demand("c", 1)) == [(OFFLOAD, "b")]


def test_low_priority_leaves_first() -> None:
    stage = Stage(models={"b": Settings(priority=-1, keep_alive=None, min_residency=0.0)})
    resident(stage, "a", "b")
    used(stage, "b")
    stage.engine("c")
    assert orders(stage.demand("c", 1)) == [(OFFLOAD, "b")]


def test_no_more_leave_than_needed() -> None:
    stage = Stage()
    resident(stage, "small", weights=10)
    resident(stage, "large", weights=60)
    stage.engine("c", weights=80)
    first = only(Grant, stage.demand("c", 1))
    assert first.holder.engine == "large"
    assert orders(stage.done(first)) == [(RESTORE, "c")]


def test_several_leave_one_after_the_other() -> None:
    stage = Stage()
    resident(stage, "a", "b", weights=50)
    stage.engine("c", weights=80)
    first = only(Grant, stage.demand("c", 1))
    assert first.holder.engine == "a"
    revision = stage.took(first)
    assert not grants(stage.demand("c", 2))
    second = only(Grant, stage.close(first, revision))
    assert (second.order, second.holder.engine) == (OFFLOAD, "b")
    assert orders(stage.done(second)) == [(RESTORE, "c")]


def test_victims_on_different_devices_leave_at_once() -> None:
    stage = Stage("n/0", "n/1")
    resident(stage, "a", weights=60, devices=("n/0",))
    resident(stage, "b", weights=60, devices=("n/1",))
    stage.engine("g", devices=("n/0", "n/1"), weights=60)
    assert orders(stage.demand("g", 1)) == [(OFFLOAD, "a"), (OFFLOAD, "b")]


def test_a_group_leaves_whole() -> None:
    stage = Stage("n/0", "n/1")
    resident(stage, "g", weights=60, devices=("n/0", "n/1"))
    stage.engine("a", devices=("n/1",), weights=60)
    offload = only(Grant, stage.demand("a", 1))
    assert [seat.device for seat in offload.seats] == ["n/0", "n/1"]


def test_a_victim_that_is_busy_elsewhere_is_thought_of_again() -> None:
    """Nobody waits on n/0, and yet what happens there lets the group go."""
    stage = Stage("n/0", "n/1")
    resident(stage, "g", weights=60, devices=("n/0", "n/1"))
    stage.engine("x", devices=("n/0",), weights=10)
    stage.engine("a", devices=("n/1",), weights=60)
    busy = only(Grant, stage.demand("x", 1))
    revision = stage.took(busy)
    assert stage.demand("a", 1) == []
    assert orders(stage.close(busy, revision)) == [(OFFLOAD, "g")]


def test_the_newcomers_other_devices_do_not_cost_anybody_his_place() -> None:
    stage = Stage("n/0", "n/1")
    resident(stage, "a", weights=30, devices=("n/0",))
    resident(stage, "b", weights=60, devices=("n/1",))
    stage.engine("g", devices=("n/0", "n/1"), weights=60)
    assert orders(stage.demand("g", 1)) == [(OFFLOAD, "b")]


def test_nobody_leaves_before_its_minimum_residency() -> None:
    stage = Stage(settings=Settings(keep_alive=None, min_residency=5.0))
    resident(stage, "a", weights=60)
    stage.engine("b", weights=60)
    assert stage.demand("b", 1) == []
    assert stage.scheduler.deadline() == 105.0
    assert orders(stage.at(104.9)) == []
    assert orders(stage.at(105.0)) == [(OFFLOAD, "a")]


def test_a_busy_one_leaves_only_for_demand_that_waited_its_minimum_residency() -> None:
    stage = Stage(settings=Settings(keep_alive=None, min_residency=5.0))
    resident(stage, "a", weights=60)
    stage.load("a", running=1)
    stage.engine("b", weights=60)
    stage.now = 150.0
    assert stage.demand("b", 1) == []
    assert orders(stage.at(154.9)) == []
    offload = only(Grant, stage.at(155.0))
    assert offload.decision.candidates[0].why == "busy"


def test_a_busy_one_that_becomes_idle_leaves_at_once() -> None:
    stage = Stage(settings=Settings(keep_alive=None, min_residency=5.0))
    resident(stage, "a", weights=60)
    stage.load("a", running=1)
    stage.engine("b", weights=60)
    stage.now = 150.0
    stage.demand("b", 1)
    stage.now = 151.0
    assert orders(stage.load("a")) == [(OFFLOAD, "a")]


def test_nobody_leaves_until_all_who_must_may() -> None:
    stage = Stage(models={"b": Settings(keep_alive=None, min_residency=9.0)})
    resident(stage, "a", "b", weights=50)
    stage.engine("c", weights=80)
    assert stage.demand("c", 1) == []
    assert orders(stage.at(110.0)) == [(OFFLOAD, "a")]


def test_an_alternative_that_may_leave_now_is_preferred() -> None:
    stage = Stage(models={"a": Settings(keep_alive=None, min_residency=90.0)})
    resident(stage, "a", "b", weights=50)
    stage.engine("c", weights=40)
    assert orders(stage.demand("c", 1)) == [(OFFLOAD, "b")]


def test_the_pinned_stay() -> None:
    stage = Stage()
    resident(stage, "a", "b")
    stage.policy("a", Policy(pin=True))
    stage.engine("c")
    offload = only(Grant, stage.demand("c", 1))
    assert offload.holder.engine == "b"
    assert [c.why for c in offload.decision.candidates if c.engine == "a"] == ["pinned"]


def test_two_pinned_models_and_no_room_is_refused_with_the_reason() -> None:
    stage = Stage()
    resident(stage, "a", "b", weights=45)
    stage.policy("a", Policy(pin=True))
    stage.policy("b", Policy(pin=True))
    stage.engine("c")
    (refusal,) = refusals(stage.demand("c", 1))
    assert refusal.reason == "c needs 40 B of n/0; pinned a, b hold 90 B of its 100 B"
    assert orders(stage.policy("b", None)) == [(OFFLOAD, "b")]


def test_an_engine_in_the_middle_of_something_is_no_victim() -> None:
    """It holds pages, and says neither resident nor offloaded."""
    stage = Stage()
    resident(stage, "a", weights=60)
    stage.see(stage.residency("a", Phase.DRAINING))
    stage.engine("b", weights=60)
    assert stage.demand("b", 1) == []


def test_an_engine_that_finishes_what_an_earlier_lease_began_is_no_victim() -> None:
    stage = Stage()
    resident(stage, "a", weights=60)
    stage.see(stage.residency("a", Phase.RESIDENT, busy=True))
    stage.engine("b", weights=60)
    assert stage.demand("b", 1) == []


def test_a_victim_that_refuses_is_left_alone_for_a_moment() -> None:
    stage = Stage()
    resident(stage, "a", weights=60)
    stage.engine("b", weights=60)
    offload = only(Grant, stage.demand("b", 1))
    revision = stage.took(offload)
    stage.see(stage.device(closed=revision))
    said = stage.see(stage.residency("a", Phase.RESIDENT, error="enter refused: stale"))
    assert not grants(said)
    assert orders(stage.at(stage.now + 1.0)) == [(OFFLOAD, "a")]


def test_who_stands_behind_may_go_first_if_that_takes_nothing_from_those_ahead() -> None:
    stage = Stage(settings=Settings(keep_alive=None, min_residency=50.0))
    resident(stage, "a", weights=60)
    stage.engine("large", weights=70)
    stage.engine("small", weights=20)
    assert stage.demand("large", 1) == []
    stage.now += 1.0
    assert orders(stage.demand("small", 1)) == [(RESTORE, "small")]


def test_who_stands_behind_may_not_take_the_room_of_those_ahead() -> None:
    stage = Stage(settings=Settings(keep_alive=None, min_residency=50.0))
    resident(stage, "a", weights=60)
    stage.engine("large", weights=70)
    stage.engine("medium", weights=35)
    stage.demand("large", 1)
    stage.now += 1.0
    assert stage.demand("medium", 1) == []


@pytest.mark.parametrize("first", ["a", "b"])
def test_equals_are_told_apart_by_name(first: str) -> None:
    stage = Stage()
    for engine in (first, "b" if first == "a" else "a"):
        stage.engine(engine, Phase.RESIDENT)
    stage.engine("c")
    assert orders(stage.demand("c", 1)) == [(OFFLOAD, "a")]


def test_a_victim_whose_other_device_waited_for_an_answer_is_thought_of_again() -> None:
    """A transaction on n/0 failed, nobody wants n/0 any more; n/1 waits for the group."""
    stage = Stage("n/0", "n/1")
    resident(stage, "g", weights=60, devices=("n/0", "n/1"))
    stage.engine("x", devices=("n/0",), weights=10)
    stage.engine("a", devices=("n/1",), weights=60)
    failed = only(Grant, stage.demand("x", 1))
    assert stage.demand("a", 1) == []
    stage.demand("x", 0)
    assert stage.refused(failed) == []
    assert orders(stage.at(stage.now + 1.0)) == [(OFFLOAD, "g")]
