"""Idleness, sleep, wake, pin, drain: who leaves without being in anybody's way."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.core.commands import Grant
from coordinator.core.events import LeadershipGained, LeadershipLost, Reconfigured
from coordinator.core.model import ModelId, Order, Phase, Policy
from coordinator.core.settings import Settings
from tests.helpers.stage import Stage, grants, only, orders, refusals

RESTORE, OFFLOAD = Order.RESTORE, Order.OFFLOAD


def kept_alive(seconds: float | None, least: float = 0.0) -> Stage:
    return Stage(settings=Settings(keep_alive=seconds, min_residency=least))


def test_idle_for_longer_than_keep_alive() -> None:
    stage = kept_alive(30.0)
    stage.engine("a", Phase.RESIDENT)
    stage.now = 110.0
    stage.load("a", running=1)
    assert orders(stage.at(200.0)) == []
    stage.load("a")
    stage.load("a")
    assert stage.scheduler.deadline() == 230.0
    assert orders(stage.at(229.9)) == []
    offload = only(Grant, stage.at(230.0))
    assert offload.decision.cause == "idle for 30.0 s, kept alive for 30 s"


def test_no_keep_alive_means_until_its_memory_is_needed() -> None:
    stage = kept_alive(None)
    stage.engine("a", Phase.RESIDENT)
    assert orders(stage.at(1e6)) == []


def test_no_time_at_all_means_as_soon_as_it_is_idle() -> None:
    stage = kept_alive(0.0, least=2.0)
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    stage.done(grant)
    stage.demand("a", 0)
    assert orders(stage.at(101.9)) == []
    assert orders(stage.at(102.0)) == [(OFFLOAD, "a")]


def test_waiting_requests_at_a_gateway_keep_it_alive() -> None:
    stage = kept_alive(30.0)
    stage.engine("a", Phase.RESIDENT)
    stage.demand("a", 1)
    assert orders(stage.at(1000.0)) == []
    stage.demand("a", 0)
    assert orders(stage.at(1029.9)) == []
    assert orders(stage.at(1030.0)) == [(OFFLOAD, "a")]


def test_the_pinned_stay_however_idle() -> None:
    stage = kept_alive(30.0)
    stage.engine("a", Phase.RESIDENT)
    stage.policy("a", Policy(pin=True))
    assert orders(stage.at(1000.0)) == []
    assert orders(stage.policy("a", Policy(pin=False))) == [(OFFLOAD, "a")]


def test_a_policy_in_etcd_overrides_what_is_configured() -> None:
    stage = kept_alive(30.0)
    stage.engine("a", Phase.RESIDENT)
    stage.policy("a", Policy(keep_alive=5.0))
    assert stage.scheduler.settings("a").keep_alive == 5.0  # type: ignore[arg-type]
    assert orders(stage.at(105.0)) == [(OFFLOAD, "a")]


def test_sleep_is_done_at_once_even_if_pinned_and_busy() -> None:
    stage = kept_alive(None, least=60.0)
    stage.engine("a", Phase.RESIDENT)
    stage.policy("a", Policy(pin=True))
    stage.load("a", running=1)
    offload = only(Grant, stage.ask("a", OFFLOAD))
    assert offload.decision.cause == "asked for by admin"


def test_what_ran_brings_it_back_and_sleep_is_asked_once() -> None:
    stage = kept_alive(None)
    stage.engine("a", Phase.RESIDENT)
    stage.load("a", running=1)
    offload = only(Grant, stage.ask("a", OFFLOAD))
    restore = only(Grant, stage.done(offload))
    assert (restore.order, restore.holder.engine) == (RESTORE, "a")
    assert orders(stage.done(restore)) == []


def test_sleep_waits_for_the_restore_that_is_under_way() -> None:
    stage = kept_alive(None)
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    revision = stage.took(grant)
    assert stage.ask("a", OFFLOAD) == []
    stage.demand("a", 0)
    stage.close(grant, revision)
    assert orders(stage.answer(grant, revision)) == [(OFFLOAD, "a")]


def test_sleep_of_a_sleeper_is_nothing_and_leaves_nothing_behind() -> None:
    stage = kept_alive(None)
    stage.engine("a")
    assert stage.ask("a", OFFLOAD) == []
    stage.done(only(Grant, stage.demand("a", 1)))
    assert orders(stage.demand("a", 0)) == []


def test_wake() -> None:
    stage = kept_alive(None)
    stage.engine("a")
    grant = only(Grant, stage.ask("a", RESTORE))
    assert grant.decision.cause == "admin asked 0.00 s ago"
    assert orders(stage.done(grant)) == []
    offload = only(Grant, stage.ask("a", OFFLOAD))
    assert orders(stage.done(offload)) == []


def test_wake_makes_room_like_any_demand() -> None:
    stage = kept_alive(None)
    stage.engine("a", Phase.RESIDENT, weights=60)
    stage.engine("b", weights=60)
    assert orders(stage.ask("b", RESTORE)) == [(OFFLOAD, "a")]


def test_wake_of_what_cannot_be_had_ends() -> None:
    stage = kept_alive(None)
    stage.engine("a", weights=101)
    assert stage.ask("a", RESTORE) == []
    assert stage.scheduler.view().models[0].refused == "a needs 101 B of n/0, which has 100 B"
    assert orders(stage.see(stage.spec("a", weights=40))) == []


def test_sleep_takes_a_wake_back() -> None:
    stage = kept_alive(None, least=50.0)
    stage.engine("a", Phase.RESIDENT, weights=60)
    stage.engine("b", weights=60)
    assert stage.ask("b", RESTORE) == []
    stage.ask("b", OFFLOAD)
    assert orders(stage.at(1000.0)) == []


def test_a_standby_takes_no_orders_and_a_leader_that_resigned_forgets_them() -> None:
    stage = Stage(lead=False)
    stage.engine("a")
    assert stage.ask("a", RESTORE) == []
    assert stage.hear(LeadershipGained("e", 9)) == []
    blocked = kept_alive(None, least=50.0)
    blocked.engine("a", Phase.RESIDENT, weights=60)
    blocked.engine("b", weights=60)
    blocked.ask("b", RESTORE)
    blocked.hear(LeadershipLost())
    blocked.hear(LeadershipGained("e", 9))
    assert orders(blocked.at(1000.0)) == []


def test_nobody_knows_the_model() -> None:
    assert kept_alive(None).ask("nobody", RESTORE) == []


@pytest.mark.parametrize("running", [0, 1])
def test_drained_leaves_when_what_it_had_begun_is_done(running: int) -> None:
    stage = kept_alive(None)
    stage.engine("a", Phase.RESIDENT)
    stage.load("a", running=running)
    said = stage.policy("a", Policy(drained=True))
    assert orders(said) == ([] if running else [(OFFLOAD, "a")])
    if running:
        offload = only(Grant, stage.load("a"))
        assert offload.decision.cause == "it is drained, and what it had begun is done"


def test_drained_comes_back_for_what_it_had_begun_and_for_nothing_else() -> None:
    stage = kept_alive(None)
    stage.engine("a")
    stage.policy("a", Policy(drained=True))
    assert not grants(stage.demand("a", 3))
    assert not grants(stage.ask("a", RESTORE))
    assert orders(stage.load("a", waiting=1)) == [(RESTORE, "a")]


def test_drained_starts_up_and_leaves() -> None:
    stage = kept_alive(None)
    stage.policy("a", Policy(drained=True))
    said = stage.engine("a", Phase.STARTING)
    assert orders(stage.done(only(Grant, said))) == [(OFFLOAD, "a")]


def test_undrained_serves_again() -> None:
    stage = kept_alive(None)
    stage.engine("a")
    stage.policy("a", Policy(drained=True))
    assert refusals(stage.demand("a", 1))
    assert orders(stage.policy("a", None)) == [(RESTORE, "a")]


def test_who_is_idle_makes_way_for_those_who_wait_first() -> None:
    """Both are due at once: the device is kept for the one that is waited for."""
    stage = Stage(models={"a": Settings(keep_alive=10.0, min_residency=0.0)})
    stage.engine("a", Phase.RESIDENT)
    stage.engine("b", Phase.RESIDENT)
    stage.now = 109.0
    stage.engine("c", weights=60)
    offload = only(Grant, stage.demand("c", 1))
    assert orders(stage.at(200.0)) == []
    assert orders(stage.done(offload)) == [(RESTORE, "c")]


def test_sleep_that_was_refused_is_asked_again_when_the_engine_has_rested() -> None:
    """It took no token for a moment; the order is still open as long as it is resident."""
    stage = kept_alive(None)
    stage.engine("a", Phase.RESIDENT)
    first = only(Grant, stage.ask("a", OFFLOAD))
    stage.refused(first)
    assert orders(stage.at(stage.now + 1.0)) == [(OFFLOAD, "a")]


def reconfigured(defaults: Settings, models: dict[ModelId, Settings] | None = None, **policy: Any) -> Reconfigured:
    return Reconfigured(defaults, models or {}, **{"policy": "cost_aware", **policy})


def test_a_file_that_was_read_again_holds_at_once() -> None:
    stage = kept_alive(None)
    stage.engine("a", Phase.RESIDENT)
    stage.engine("b", Phase.RESIDENT)
    stage.now = 200.0
    pinned = Settings(keep_alive=10.0, min_residency=0.0, pin=True)
    news = reconfigured(Settings(keep_alive=10.0, min_residency=0.0), {ModelId("b"): pinned})
    assert orders([*stage.hear(news), *stage.at(200.0)]) == [(OFFLOAD, "a")]
    assert stage.scheduler.settings(ModelId("b")) == pinned
    assert stage.scheduler.configured(ModelId("b")) == (pinned, None)


def test_what_stands_in_etcd_still_goes_before_the_file() -> None:
    stage = kept_alive(None)
    stage.engine("a", Phase.RESIDENT)
    stage.policy("a", Policy(pin=True))
    stage.now = 200.0
    assert orders(stage.hear(reconfigured(Settings(keep_alive=0.0)))) == []


def test_another_policy_decides_from_now_on_and_the_same_one_keeps_its_memory() -> None:
    stage = kept_alive(None)
    stage.hear(reconfigured(Settings(), policy="landlord", shadow="lru", predict=True))
    chosen = stage.scheduler.chosen
    assert (chosen.name, chosen.shadow, chosen.predict) == ("landlord", "lru", True)
    before = stage.scheduler._policy
    stage.hear(reconfigured(Settings(pin=True), policy="landlord"))
    assert stage.scheduler._policy is before
    assert stage.scheduler.chosen.shadow is None
