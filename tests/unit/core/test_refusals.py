"""Those who wait in vain are told so: once for a cause, and again only when somebody new asks."""

from __future__ import annotations

from coordinator.core.commands import Grant
from coordinator.core.model import Order, Phase, Policy
from coordinator.core.settings import Limits
from tests.helpers.stage import Stage, only, orders, refusals


def test_larger_than_its_device() -> None:
    stage = Stage()
    stage.engine("a", weights=101)
    (refusal,) = refusals(stage.demand("a", 3))
    assert (refusal.model, refusal.retry_after_s) == ("a", 30.0)
    assert refusal.reason == "a needs 101 B of n/0, which has 100 B"
    assert stage.scheduler.view().models[0].refused == refusal.reason


def test_it_is_said_once_and_again_for_new_demand() -> None:
    stage = Stage()
    stage.engine("a", weights=101)
    assert refusals(stage.demand("a", 3))
    assert not refusals(stage.demand("a", 3))
    assert not refusals(stage.demand("a", 1))
    assert refusals(stage.demand("a", 2))
    assert not refusals(stage.demand("a", 0))
    assert refusals(stage.demand("a", 1))


def test_it_is_said_again_for_another_cause() -> None:
    stage = Stage()
    stage.engine("p", Phase.RESIDENT, weights=60)
    stage.policy("p", Policy(pin=True))
    stage.engine("a", weights=60)
    assert "pinned p hold 60 B" in refusals(stage.demand("a", 1))[0].reason
    (refusal,) = refusals(stage.see(stage.spec("a", weights=101)))
    assert "which has 100 B" not in refusal.reason
    stage.policy("p", None)
    assert "which has 100 B" in stage.scheduler.view().models[0].refused


def test_it_ends_when_it_can_be_served() -> None:
    stage = Stage()
    stage.engine("a", weights=101)
    stage.demand("a", 1)
    assert orders(stage.see(stage.spec("a", weights=40))) == [(Order.RESTORE, "a")]
    assert stage.scheduler.view().models[0].refused == ""


def test_the_head_of_the_queue_that_cannot_be_served_blocks_nobody() -> None:
    stage = Stage()
    stage.engine("a", weights=101)
    stage.engine("b")
    stage.demand("a", 1)
    assert orders(stage.demand("b", 1)) == [(Order.RESTORE, "b")]


def test_requests_at_an_engines_own_port_cannot_be_told() -> None:
    stage = Stage()
    stage.engine("a", weights=101)
    assert stage.load("a", waiting=1) == []
    assert stage.scheduler.view().models[0].refused


def test_failed() -> None:
    stage = Stage()
    stage.engine("a", Phase.FAILED)
    stage.see(stage.residency("a", Phase.FAILED, error="digest of weights differs"))
    assert refusals(stage.demand("a", 1))[0].reason == "a failed: digest of weights differs"


def test_drained() -> None:
    stage = Stage()
    stage.engine("a")
    stage.policy("a", Policy(drained=True))
    (refusal,) = refusals(stage.demand("a", 1))
    assert refusal.reason == "a is drained by the operator"
    assert stage.demand("a", 0) == []
    assert refusals(stage.demand("a", 1))


def test_a_drained_start_up_is_refused_once_though_it_starts() -> None:
    stage = Stage()
    stage.policy("a", Policy(drained=True))
    stage.engine("a", Phase.STARTING)
    assert refusals(stage.demand("a", 2))
    assert not refusals(stage.demand("a", 1))
    assert not refusals(stage.load("a", waiting=1))


def test_a_start_up_that_does_not_fit_speaks_for_its_model() -> None:
    stage = Stage()
    stage.engine("a", Phase.STARTING, weights=101)
    assert not refusals(stage.said)
    assert refusals(stage.demand("a", 1))[0].reason == "a needs 101 B of n/0, which has 100 B"


def test_a_replica_that_cannot_start_does_not_refuse_for_those_that_serve() -> None:
    stage = Stage()
    stage.engine("a1", model="a")
    stage.engine("a2", Phase.STARTING, model="a", weights=101)
    said = stage.demand("a", 1)
    assert (orders(said), refusals(said)) == ([(Order.RESTORE, "a1")], [])


def test_of_two_start_ups_one_that_does_not_fit_refuses_for_neither() -> None:
    stage = Stage()
    stage.engine("z")
    stage.took(only(Grant, stage.demand("z", 1)))
    stage.engine("a1", Phase.STARTING, model="a", weights=101)
    stage.engine("a2", Phase.STARTING, model="a")
    for waiting in (3, 2, 1, 4):
        assert not refusals(stage.demand("a", waiting))


def test_of_two_start_ups_neither_fits() -> None:
    stage = Stage()
    stage.engine("a1", Phase.STARTING, model="a", weights=101)
    stage.engine("a2", Phase.STARTING, model="a", weights=102)
    assert refusals(stage.demand("a", 2))[0].reason == "a1 needs 101 B of n/0, which has 100 B"
    assert not refusals(stage.demand("a", 1))


def test_one_engine_failed_and_another_does_not_fit() -> None:
    stage = Stage()
    stage.engine("a1", Phase.FAILED, model="a")
    stage.engine("a2", model="a", weights=101)
    assert len(refusals(stage.demand("a", 1))) == 1


def test_one_engine_does_not_fit_and_another_is_on_its_way() -> None:
    stage = Stage()
    stage.engine("a1", model="a", weights=101)
    stage.engine("a2", model="a")
    stage.see(stage.residency("a2", Phase.DRAINING))
    assert refusals(stage.demand("a", 1)) == []


def deny(stage: Stage, grant: Grant) -> None:
    revision = stage.took(grant)
    stage.see(stage.device(closed=revision))
    stage.see(stage.residency("a", Phase.OFFLOADED, fence=revision, error="denied pages"))


def test_a_restore_that_fails_is_tried_again_later_and_later() -> None:
    stage = Stage()
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    for failures, wait in ((1, 1.0), (2, 2.0), (3, 4.0)):
        stage.said.clear()
        deny(stage, grant)
        assert orders(stage.said) == []
        assert orders(stage.at(stage.now + wait - 0.01)) == []
        grant = only(Grant, stage.at(stage.now + 0.01))
        assert grant.decision.cause.endswith(f"(after {failures} failures)")


def test_those_who_wait_are_told_after_three_failures() -> None:
    stage = Stage()
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    for _ in range(2):
        deny(stage, grant)
        grant = only(Grant, stage.at(stage.now + 2.0))
    assert not refusals(stage.said)
    deny(stage, grant)
    (refusal,) = refusals(stage.said)
    assert (refusal.reason, refusal.retry_after_s) == ("a failed 3 times in a row: denied pages", 4.0)


def test_a_success_forgives() -> None:
    stage = Stage()
    stage.engine("a")
    deny(stage, only(Grant, stage.demand("a", 1)))
    stage.done(only(Grant, stage.at(stage.now + 1.0)))
    assert stage.scheduler.view().engines[0].failures == 0


def test_an_answer_that_is_owed_is_waited_for_before_trying_again() -> None:
    """The daemon closed the restore without pages: why, the engine has yet to say."""
    stage = Stage()
    stage.engine("a")
    revision = stage.took(only(Grant, stage.demand("a", 1)))
    assert stage.see(stage.device(closed=revision))[0].endpoints == ()  # type: ignore[union-attr]
    assert orders(stage.at(stage.now + Limits().answer_s - 0.1)) == []
    assert orders(stage.at(stage.now + 0.1)) == [(Order.RESTORE, "a")]
