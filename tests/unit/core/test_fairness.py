"""Nobody waits for ever: turns, bounds, and no thrash."""

from __future__ import annotations

from itertools import pairwise

import pytest

from coordinator.core.commands import Grant
from coordinator.core.model import Order, Phase
from coordinator.core.policies.registry import POLICIES
from coordinator.core.settings import Settings
from tests.helpers.stage import Stage, grants, orders

LEAST = 2.0
RESTORE, OFFLOAD = Order.RESTORE, Order.OFFLOAD
POLICY = pytest.mark.parametrize("policy", POLICIES)


class Turns:
    """Models that are wanted all the time and fit only one by one; every operation takes half a second."""

    def __init__(self, *models: str, policy: str = "lru") -> None:
        self.stage = Stage(settings=Settings(keep_alive=None, min_residency=LEAST), policy=policy)
        self.begun: list[tuple[float, str]] = []
        self.pending: list[tuple[float, Grant, int]] = []
        for model in models:
            self.stage.engine(model, weights=60)
        for model in models:
            self.collect(self.stage.load(model, waiting=1))
            self.stage.now += 0.01

    def collect(self, commands: list[object]) -> None:
        for grant in grants(commands):  # type: ignore[arg-type]
            self.pending.append((self.stage.now + 0.5, grant, self.stage.took(grant)))

    def run(self, until: float) -> None:
        while self.stage.now < until:
            deadline = self.stage.scheduler.deadline()
            wakes = [at for at, _, _ in self.pending] + ([deadline] if deadline is not None else [])
            self.stage.now = max(self.stage.now, min(wakes, default=until))
            due = [each for each in self.pending if each[0] <= self.stage.now]
            self.pending = [each for each in self.pending if each[0] > self.stage.now]
            for _, grant, revision in due:
                if grant.order is RESTORE:
                    self.begun.append((self.stage.now, grant.holder.engine))
                self.collect(self.stage.close(grant, revision))
                self.collect(self.stage.answer(grant, revision))
            self.collect(self.stage.at(self.stage.now))

    def gaps(self, model: str) -> list[float]:
        times = [at for at, who in self.begun if who == model]
        return [after - before for before, after in pairwise(times)]


@POLICY
def test_a_hot_pair_that_does_not_fit_together_takes_turns(policy: str) -> None:
    turns = Turns("a", "b", policy=policy)
    turns.run(200.0)
    names = [who for _, who in turns.begun]
    assert len(names) > 20
    assert all(before != after for before, after in pairwise(names))


@POLICY
@pytest.mark.parametrize("count", [2, 3, 5])
def test_everyone_gets_a_turn_within_the_bound(count: int, policy: str) -> None:
    """(places ahead + 1) x (minimum residency + two operations)."""
    models = [f"m{number}" for number in range(count)]
    turns = Turns(*models, policy=policy)
    turns.run(300.0)
    for model in models:
        assert max(turns.gaps(model)) <= count * (LEAST + 2 * 0.5) + 0.1


@POLICY
def test_nobody_is_made_to_leave_before_his_time(policy: str) -> None:
    turns = Turns("a", "b", "c", policy=policy)
    turns.run(200.0)
    times = [at for at, _ in turns.begun]
    assert all(after - before >= LEAST for before, after in pairwise(times))


@POLICY
def test_a_third_is_not_starved_by_a_hot_pair(policy: str) -> None:
    turns = Turns("a", "b", policy=policy)
    turns.run(150.0)
    turns.stage.engine("c", weights=60)
    asked = turns.stage.now
    turns.collect(turns.stage.demand("c", 1))
    turns.run(250.0)
    first = next(at for at, who in turns.begun if who == "c")
    assert first - asked <= 3 * (LEAST + 2 * 0.5)


def test_a_failed_restore_does_not_cost_the_place() -> None:
    """Not even if the gateway has sent its requests on already, and takes them back."""
    stage = Stage(settings=Settings(keep_alive=None, min_residency=0.0))
    stage.engine("a", weights=60)
    stage.engine("b", weights=60)
    (grant,) = grants(stage.demand("a", 1))
    stage.now += 1.0
    stage.demand("b", 1)
    stage.now += 1.0
    revision = stage.took(grant)
    stage.demand("a", 0)
    stage.now += 1.0
    stage.demand("a", 1)
    stage.see(stage.device(closed=revision))
    assert stage.scheduler.view().models[0].waiting_s == 3.0


def test_a_large_newcomer_is_not_starved_by_small_ones() -> None:
    """Small ones come and go all the time; room for the large one is kept once it is its turn."""
    stage = Stage(settings=Settings(keep_alive=None, min_residency=LEAST))
    for number in range(3):
        stage.engine(f"s{number}", Phase.RESIDENT, weights=33)
    stage.engine("large", weights=90)
    stage.engine("s3", weights=33)
    assert stage.demand("large", 1) == []
    stage.now += 0.5
    assert stage.demand("s3", 1) == []
    done: list[str] = []
    said = stage.at(stage.now + LEAST)
    while grants(said):
        (grant,) = grants(said)
        done.append(f"{grant.order} {grant.holder.engine}")
        said = stage.done(grant)
        if grant.holder.engine == "large":
            break
    assert done == ["offload s0", "offload s1", "offload s2", "restore large"]


def test_replicas_the_one_that_costs_least_is_taken() -> None:
    stage = Stage("n/0", "n/1", settings=Settings(keep_alive=None, min_residency=0.0))
    stage.engine("x", Phase.RESIDENT, devices=("n/0",), weights=80)
    stage.engine("a0", model="a", devices=("n/0",), weights=60)
    stage.engine("a1", model="a", devices=("n/1",), weights=60)
    assert orders(stage.demand("a", 1)) == [(RESTORE, "a1")]


def test_requests_inside_an_engine_bring_that_engine_back_though_another_serves_the_model() -> None:
    """Nobody else can end them."""
    stage = Stage("n/0", "n/1", settings=Settings(keep_alive=None, min_residency=0.0))
    stage.engine("a0", model="a", devices=("n/0",))
    stage.engine("a1", Phase.RESIDENT, model="a", devices=("n/1",))
    (grant,) = grants(stage.load("a0", waiting=2))
    assert (grant.order, grant.holder.engine) == (RESTORE, "a0")
    assert grant.decision.cause == "2 requests wait for 0.00 s"
    assert stage.scheduler.view().models[0].waiting_s is None


def test_requests_inside_one_engine_do_not_bring_back_another() -> None:
    stage = Stage("n/0", "n/1", settings=Settings(keep_alive=None, min_residency=0.0))
    stage.engine("a0", model="a", devices=("n/0",))
    stage.engine("a1", model="a", devices=("n/1",))
    assert orders(stage.load("a1", waiting=2)) == [(RESTORE, "a1")]
