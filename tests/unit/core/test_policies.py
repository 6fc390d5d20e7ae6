"""Each policy by itself: what it prefers, what it says, and the rules that all of them keep."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.core.arrivals import Arrivals
from coordinator.core.commands import Grant
from coordinator.core.model import DeviceId, EngineId, ModelId, Phase
from coordinator.core.policies.registry import POLICIES, make
from coordinator.core.policies.reuse import reuse
from coordinator.core.policy import Resident, Score, Wanted
from coordinator.core.settings import Settings
from coordinator.errors import ConfigError
from tests.helpers.stage import Stage, grants, only

PLACE = DeviceId("n/0")
GB = 10**9


def arrivals_of(*uses: tuple[str, float]) -> Arrivals:
    arrivals = Arrivals()
    for model, at in uses:
        arrivals.note(ModelId(model), PLACE, at, active=True)
        arrivals.note(ModelId(model), PLACE, at + 1.0, active=False)
    return arrivals


def resident(
    model: str,
    arrivals: Arrivals | None = None,
    *,
    busy: bool = False,
    restore_s: float = 1.0,
    bytes_: int = GB,
    active_at: float = 90.0,
    inside: int = 0,
    settings: Settings = Settings(),  # noqa: B008
) -> Resident:
    return Resident(
        EngineId(model),
        ModelId(model),
        settings,
        bytes_,
        busy,
        0.0,
        active_at,
        restore_s,
        0.1,
        inside,
        arrivals.of(ModelId(model)) if arrivals else None,
    )


def wanted(arrivals: Arrivals | None = None, now: float = 100.0) -> Wanted:
    around = arrivals.around(PLACE, now) if arrivals else None
    return Wanted(EngineId("new"), ModelId("new"), Settings(), now, around, residents=2)


def seconds(score: Score) -> float:
    assert score.seconds is not None
    return score.seconds


# ---- all of them


@pytest.mark.parametrize("name", POLICIES)
@given(
    busy=st.booleans(),
    since=st.floats(0, 100),
    least=st.floats(0, 50),
    priority=st.integers(-1000, 1000),
    idle=st.floats(0, 100),
    restore=st.floats(0, 1000),
)
def test_nobody_is_kept_beyond_his_least_nor_leaves_before(
    name: str, busy: bool, since: float, least: float, priority: int, idle: float, restore: float
) -> None:
    """The scheduler's bound on waiting rests on it; ranks hold whatever a policy thinks of cost."""
    settings = Settings(min_residency=least, priority=priority)
    one = Resident(EngineId("a"), ModelId("a"), settings, GB, busy, since, 100.0 - idle, restore, 0.1, 3)
    score = make(name).score(one, wanted(), 100.0)
    assert score.not_before == max(since + least, 100.0 + least if busy else 0.0)
    assert math.isfinite(score.value)
    assert score.rank == priority + (10_000 if busy else 0)


@pytest.mark.parametrize("name", POLICIES)
def test_idle_before_busy_and_low_priority_before_high(name: str) -> None:
    policy = make(name)
    low, high = Settings(priority=-1), Settings(priority=1)
    inorder = [
        policy.score(resident("a", settings=low, restore_s=99.0), wanted(), 100.0),
        policy.score(resident("b"), wanted(), 100.0),
        policy.score(resident("c", settings=high, restore_s=0.0), wanted(), 100.0),
        policy.score(resident("d", settings=low, busy=True, restore_s=0.0), wanted(), 100.0),
        policy.score(resident("e", busy=True), wanted(), 100.0),
    ]
    assert sorted(inorder, key=lambda score: score.value) == inorder
    assert sorted(inorder, key=lambda score: score.rank) == inorder


@pytest.mark.parametrize("name", POLICIES)
def test_a_pinned_model_is_never_a_victim(name: str) -> None:
    stage = Stage(models={"p": Settings(pin=True), "b": Settings()}, policy=name)
    stage.engine("p", Phase.RESIDENT, weights=60)
    stage.engine("b", Phase.RESIDENT, weights=40)
    stage.engine("c", weights=40)
    stage.engine("d", weights=60)
    stage.now += 60.0
    assert only(Grant, stage.demand("c", 1)).holder.engine == "b"
    said = stage.demand("d", 1)
    assert grants(said) == []
    assert "pinned p hold 60 B of its 100 B" in str(said)


def test_names_and_options() -> None:
    assert [make(name).name for name in POLICIES] == list(POLICIES)
    with pytest.raises(ConfigError, match=r"no policy is called 'mru'.*lru, landlord, cost_aware"):
        make("mru")
    with pytest.raises(ConfigError, match=r"policy lru: .*horizon.*it has no options"):
        make("lru", {"horizon": 1.0})
    with pytest.raises(ConfigError, match="its options are horizon, objective"):
        make("cost_aware", {"horizon": 0.0})


# ---- landlord


def test_landlord_lets_the_cheap_byte_go_and_rent_rises() -> None:
    arrivals = arrivals_of(("a", 0.0), ("b", 10.0), ("c", 20.0))
    policy = make("landlord")
    dear, cheap = resident("a", arrivals, restore_s=4.0), resident("b", arrivals, restore_s=1.0)
    asked = wanted(arrivals)
    assert policy.score(cheap, asked, 100.0).value < policy.score(dear, asked, 100.0).value
    policy.left(cheap, asked, 100.0)
    assert policy.score(dear, asked, 100.0).value == pytest.approx(4.1 - 1.1)
    policy.left(resident("d", restore_s=3.0), asked, 100.0)
    fresh = resident("c", arrivals_of(("c", 90.0)), restore_s=1.0)
    assert policy.score(fresh, asked, 101.0).value == pytest.approx(1.1)
    assert policy.score(dear, asked, 101.0).value < policy.score(fresh, asked, 101.0).value


# ---- cost-aware


def test_the_restore_that_takes_long_stays() -> None:
    policy = make("cost_aware")
    assert seconds(policy.score(resident("a", restore_s=3.0), wanted(), 100.0)) > seconds(
        policy.score(resident("b", restore_s=1.0), wanted(), 100.0)
    )


def test_what_comes_back_soon_stays_though_it_was_used_longer_ago() -> None:
    """LRU would take `often`."""
    uses = [("often", 10.0 * n) for n in range(30)] + [("seldom", 10.0 * n + 5) for n in (0, 28.9)]
    arrivals = arrivals_of(*sorted([*uses, *(("third", 10.0 * n + 4) for n in range(30))], key=lambda use: use[1]))
    for n in range(30):
        arrivals.restored(PLACE, 10.0 * n, 2)
    policy, asked = make("cost_aware"), wanted(arrivals, 297.0)
    often = policy.score(resident("often", arrivals), asked, 297.0)
    seldom = policy.score(resident("seldom", arrivals), asked, 297.0)
    assert seconds(seldom) < seconds(often)


def test_a_timer_is_seen_coming_and_a_finished_session_given_up() -> None:
    uses = [("timer", 60.0 * n) for n in range(10)] + [("x", 7.0 * n + 3) for n in range(80)]
    arrivals = Arrivals()
    for model, start in sorted(uses, key=lambda use: use[1]):
        arrivals.note(ModelId(model), PLACE, start, active=True)
        arrivals.note(ModelId(model), PLACE, start + 0.6, active=False)
        if model == "timer":
            for _ in range(3):
                arrivals.restored(PLACE, start, 2)
    around = arrivals.around(PLACE, 541.0)
    timer = arrivals.of(ModelId("timer"))
    assert timer is not None
    soon, late = (reuse(timer, around, 2, now, 0.5) for now in (598.0, 545.0))
    assert soon > 2 * late
    gone = reuse(timer, around, 2, 2000.0, 0.5)
    assert gone < soon / 2


def test_turns_of_another_device_say_nothing() -> None:
    """A group's victim may be at home on a device whose turns are counted apart: no age, and no overflow, from them."""
    arrivals = arrivals_of(*((model, 10.0 * n + k) for n in range(40) for k, model in enumerate("ab")))
    habit = arrivals.of(ModelId("a"))
    assert habit is not None
    elsewhere = arrivals.around(DeviceId("n/1"), 400.0)
    for n in range(30):
        elsewhere.restores.append((400.0 + n / 1000, 0))
    assert 0.0 <= reuse(habit, elsewhere, 1, 401.0, 0.5) <= 1.0


def test_frozen_requests_wait_too_and_an_objective_weighs() -> None:
    policy = make("cost_aware")
    one = seconds(policy.score(resident("a", busy=True, inside=1), wanted(), 100.0))
    five = seconds(policy.score(resident("a", busy=True, inside=5), wanted(), 100.0))
    assert five == pytest.approx(one + 4.0)
    strict = Settings(ttft_objective=0.5)
    plain = seconds(policy.score(resident("a"), wanted(), 100.0)) - 0.1
    assert seconds(policy.score(resident("a", settings=strict), wanted(), 100.0)) - 0.1 == pytest.approx(3 * plain)
    assert make("cost_aware", {"objective": 0}).score(resident("a", settings=strict), wanted(), 100.0) == policy.score(
        resident("a"), wanted(), 100.0
    )


def test_the_decision_keeps_who_scored_and_what_the_shadow_would_have_done() -> None:
    stage = Stage(policy="cost_aware", shadow="lru", capacity=100 * GB)
    stage.engine("a", Phase.RESIDENT, weights=60 * GB)
    stage.now += 1.0
    stage.engine("b", Phase.RESIDENT, weights=40 * GB)
    stage.engine("c", weights=40 * GB)
    stage.now += 10.0
    decision = only(Grant, stage.demand("c", 1)).decision
    assert (decision.engine, decision.wanted, decision.policy) == ("b", "c", "cost_aware")
    assert decision.shadow == "lru: a"
    assert {candidate.engine for candidate in decision.candidates} == {"a", "b"}
    assert "needed again" in decision.candidates[0].why
