"""Predictive wake: only into room that is left over, only who had to leave, never before anybody who waits."""

from __future__ import annotations

import pytest

from coordinator.core import foresight
from coordinator.core.commands import Command, Grant
from coordinator.core.model import Order, Phase
from coordinator.core.settings import Settings
from tests.helpers.stage import Stage, grants, only, orders


def displaced(*, predict: bool = True, turns: int = 5, pause: float = 0.0) -> tuple[Stage, list[Command]]:
    """`a` (20 bytes) had to leave for `b` (100), and `b`, after so many turns and a pause, for `c` (60): 40 are left
    over."""
    stage = Stage(policy="lru", predict=predict, settings=Settings(keep_alive=None, min_residency=3.0))
    stage.engine("a", Phase.RESIDENT, weights=20)
    stage.engine("b", weights=100)
    stage.engine("c", weights=60)
    stage.engine("d", weights=40)
    said: list[Command] = []
    for model in ("a", "b") * turns + ("c",):
        stage.now += 20.0 + (pause if model == "c" else 0.0)
        said = stage.demand(model, 1)
        while (found := grants(said)) and found[0].order is Order.OFFLOAD:
            said = stage.done(found[0])
        for grant in found:
            revision = stage.took(grant)
            stage.load(model, running=1)
            stage.demand(model, 0)
            stage.close(grant, revision)
            said = stage.answer(grant, revision)
        stage.demand(model, 0)
        stage.now += 1.0
        said += stage.load(model)
    return stage, said


def test_who_had_to_leave_comes_back_into_what_is_left_over() -> None:
    stage, said = displaced()
    grant = only(Grant, said)
    assert (grant.order, grant.holder.engine) == (Order.RESTORE, "a")
    assert grant.decision.cause.startswith("predicted: needed soon with ")
    stage.done(grant)
    assert stage.scheduler.predictions == (1, 0)


def test_who_is_hardly_likely_to_be_needed_does_not() -> None:
    """Their turns have ended long ago."""
    _, said = displaced(pause=2000.0)
    assert grants(said) == []


def test_off_means_off() -> None:
    _, said = displaced(predict=False)
    assert grants(said) == []


def test_whoever_is_wanted_goes_first_and_the_unused_leaves_without_delay() -> None:
    """It has no minimum residency, and is counted as regretted."""
    stage, said = displaced()
    stage.done(only(Grant, said))
    stage.now += 0.5
    leave = only(Grant, stage.demand("d", 1))
    assert (leave.order, leave.holder.engine) == (Order.OFFLOAD, "a")
    assert only(Grant, stage.done(leave)).holder.engine == "d"
    assert stage.scheduler.predictions == (1, 1)


def test_once_used_it_stays_its_time() -> None:
    stage, said = displaced()
    stage.done(only(Grant, said))
    stage.load("a", running=1)
    stage.load("a")
    stage.now += 0.5
    assert grants(stage.demand("d", 1)) == []


def later(*, waits: bool = False, asleep: bool = False) -> list[Command]:
    """What is ordered when prediction begins after all, and the device is looked at again."""
    stage, _ = displaced(predict=False)
    stage.scheduler._predict = True
    if waits:
        stage.engine("e", weights=100)
        assert grants(stage.demand("e", 1)) == [], "it waits until c may leave"
    if asleep:
        stage.ask("a", Order.OFFLOAD)
    return stage.load("c", running=1)


def test_nothing_is_predicted_while_somebody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foresight, "LEAST", 0.0)  # how likely it is, is not the question here
    assert orders(later()) == [(Order.RESTORE, "a")]
    assert orders(later(waits=True)) == []


def test_who_was_sent_to_sleep_is_not_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foresight, "LEAST", 0.0)
    assert orders(later(asleep=True)) == []
