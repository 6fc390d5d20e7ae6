"""What moving an engine takes, learned from what engines say."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.core.commands import Grant
from coordinator.core.costs import GUESSED_BANDWIDTH, Costs
from coordinator.core.events import ResidencySeen
from coordinator.core.model import Bytes, EngineId, Fence, Holder, Order, Phase, Residency, Step
from tests.helpers.stage import EPOCH, Stage, only

A, B = EngineId("a"), EngineId("b")


def said(seconds: float, *, restored: int = 0, saved: int = 0, drain: float = 0.0) -> Residency:
    steps = (Step("drain", drain), Step("copy", seconds))
    phase = Phase.RESIDENT if restored else Phase.OFFLOADED
    return Residency(holder=Holder("a", "1"), phase=phase, steps=steps, restored=restored, kv_saved=saved)


def test_guessed_then_by_others_then_by_its_own() -> None:
    costs = Costs()
    assert costs.restore_s(A, 1000) == 1000 / GUESSED_BANDWIDTH
    costs.learn(B, Order.RESTORE, said(2.0, restored=1000))
    assert costs.restore_s(A, 500) == 1.0
    costs.learn(A, Order.RESTORE, said(4.0, restored=500))
    assert costs.restore_s(A, 500) == 4.0
    assert costs.restore_s(B, 1000) == 2.0


def test_each_way_is_measured_by_itself_and_waiting_is_no_move() -> None:
    costs = Costs()
    assert costs.offload_s(A) == 0.0
    costs.learn(A, Order.OFFLOAD, said(0.25, saved=100, drain=30.0))
    assert costs.offload_s(A) == 0.25
    assert costs.restore_s(A, 1000) == 1000 / GUESSED_BANDWIDTH


def test_the_newest_measurement_counts_half() -> None:
    costs = Costs()
    costs.learn(A, Order.RESTORE, said(2.0, restored=1000))
    costs.learn(A, Order.RESTORE, said(4.0, restored=1000))
    assert costs.restore_s(A, 1000) == 3.0
    costs.forget(A)
    assert costs.restore_s(A, 1000) == pytest.approx(1000 / 375)


def test_weights_that_were_joined_say_nothing_about_copies() -> None:
    costs = Costs()
    costs.learn(A, Order.RESTORE, said(2.0, restored=1000))
    costs.learn(A, Order.RESTORE, msgspec.structs.replace(said(0.5, restored=1), held=Bytes(kv=4)))
    assert costs.restore_s(A, 1000) == 2.0
    assert costs.restore_s(B, 500) == 1.0


def test_a_restore_that_found_its_weights_where_it_left_them_tells_what_it_takes_beside_its_bytes() -> None:
    costs, held = Costs(), Bytes(weights=900, kv=100)
    costs.learn(B, Order.RESTORE, said(10.0, restored=1000))
    hot = msgspec.structs.replace(said(0.5, restored=10), held=held)
    costs.learn(A, Order.RESTORE, hot)
    assert costs.restore_s(A, 1000) == pytest.approx(0.5 + 990 / 100)
    assert costs.restore_s(A, 20) == pytest.approx(1.0)
    assert costs.restore_s(EngineId("c"), 100) == 1.0
    costs.learn(A, Order.RESTORE, msgspec.structs.replace(hot, restored=0))
    assert costs.restore_s(A, 1000) == pytest.approx(0.5 + 10)
    costs.learn(A, Order.RESTORE, msgspec.structs.replace(hot, restored=500))
    assert costs.restore_s(A, 1000) == pytest.approx(1.0)
    assert costs.restore_s(EngineId("c"), 1000) == pytest.approx(1000 / 550)


def test_the_scheduler_learns_from_answers_to_its_orders() -> None:
    stage = Stage()
    stage.engine("a", weights=40)
    grant = only(Grant, stage.demand("a", 1))
    revision = stage.took(grant)
    stage.close(grant, revision)
    word = Residency(
        holder=grant.holder,
        phase=Phase.RESIDENT,
        fence=Fence(EPOCH, revision),
        steps=(Step("copy", 8.0),),
        restored=40,
    )
    stage.see(ResidencySeen(A, word, stage.next()))
    assert stage.scheduler._costs.restore_s(A, 40) == 8.0
    stage.gone("a")
    assert stage.scheduler._costs.restore_s(A, 40) == 40 / 5.0
