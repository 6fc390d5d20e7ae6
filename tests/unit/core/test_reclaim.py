"""PROTOCOL rules 10 and 12: who does not answer, and who never came back."""

from __future__ import annotations

from coordinator.core.commands import Grant, Reclaim
from coordinator.core.events import (
    DeviceSeen,
    EpochSeen,
    LeadershipGained,
    LeadershipLost,
    Listed,
    SeatSeen,
    TokenSeen,
)
from coordinator.core.model import Bytes, Epoch, Order, Owner, Phase
from coordinator.core.settings import Limits
from tests.helpers.stage import Stage, holder, of, only, orders

LIMITS = Limits()


def overdue(stage: Stage) -> tuple[Grant, int]:
    """A restore of `a` is granted and nobody answers."""
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    return grant, stage.took(grant)


def test_a_grant_that_is_not_answered_within_its_limit_is_reclaimed() -> None:
    stage = Stage()
    _, revision = overdue(stage)
    assert stage.scheduler.deadline() == 100.0 + LIMITS.restore_s
    assert of(Reclaim, stage.at(159.9)) == []
    reclaim = only(Reclaim, stage.at(160.0))
    assert (reclaim.holder, reclaim.limit_s) == (holder("a"), LIMITS.reclaim_s)
    assert [(seat.device, seat.revision) for seat in reclaim.seats] == [("n/0", revision)]
    assert reclaim.decision.cause == "did not restore within 60 s on n/0"
    assert (reclaim.decision.order, reclaim.decision.engine) == (Order.RECLAIM, "a")


def test_a_reclaim_is_not_repeated_and_moves_on_when_closed() -> None:
    stage = Stage()
    overdue(stage)
    reclaim = only(Reclaim, stage.at(160.0))
    revision = stage.took(reclaim)
    assert stage.at(1000.0) == []
    stage.engine("b", weights=90)
    stage.demand("b", 1)
    stage.gone("a")
    assert orders(stage.close(reclaim, revision)) == [(Order.RESTORE, "b")]


def test_a_reclaim_that_fails_is_tried_again() -> None:
    stage = Stage()
    overdue(stage)
    reclaim = only(Reclaim, stage.at(160.0))
    assert stage.refused(reclaim) == []
    assert only(Reclaim, stage.at(161.0)).seats == reclaim.seats


def test_what_is_closed_in_time_is_not_reclaimed() -> None:
    stage = Stage()
    grant, revision = overdue(stage)
    stage.close(grant, revision)
    stage.answer(grant, revision)
    assert of(Reclaim, stage.at(1000.0)) == []


def test_an_answer_without_the_daemons_word_postpones_it_once() -> None:
    stage = Stage()
    grant, revision = overdue(stage)
    stage.answer(grant, revision)
    assert of(Reclaim, stage.at(160.0)) == []
    assert of(Reclaim, stage.at(220.0))


def test_limits_stand_still_while_the_daemon_is_away() -> None:
    stage = Stage()
    overdue(stage)
    stage.see(DeviceSeen("n/0", None, stage.next()))  # type: ignore[arg-type]
    assert stage.at(500.0) == []
    stage.see(stage.device())
    assert of(Reclaim, stage.at(559.9)) == []
    assert of(Reclaim, stage.at(560.0))


def test_limits_restart_with_a_new_leader() -> None:
    stage = Stage()
    overdue(stage)
    stage.now = 150.0
    stage.hear(LeadershipLost())
    assert stage.scheduler.deadline() is None
    stage.hear(LeadershipGained("election/2", 99))
    assert of(Reclaim, stage.at(209.9)) == []
    assert only(Reclaim, stage.at(210.0)).election_revision == 99


def test_limits_do_not_restart_with_a_listing_of_the_same_leader() -> None:
    stage = Stage()
    overdue(stage)
    stage.now = 150.0
    ledger = stage.scheduler._ledger
    entry = ledger.devices["n/0"]  # type: ignore[index]
    facts = (
        EpochSeen(Epoch(id="life-1"), 1),
        DeviceSeen(entry.id, entry.state, 2),
        SeatSeen(entry.id, entry.seat, entry.seat_revision),
        TokenSeen(entry.id, entry.token, entry.token_revision),
    )
    stage.hear(Listed(facts, stage.next()))
    assert of(Reclaim, stage.at(160.0))


def test_a_group_is_reclaimed_on_all_its_devices() -> None:
    stage = Stage("n/0", "n/1")
    stage.engine("g", devices=("n/0", "n/1"))
    stage.took(only(Grant, stage.demand("g", 1)))
    reclaim = only(Reclaim, stage.at(160.0))
    assert [seat.device for seat in reclaim.seats] == ["n/0", "n/1"]


def test_nobody_elses_operation_is_reclaimed_over() -> None:
    """The group left n/0, another works there now; n/1 is overdue."""
    stage = Stage("n/0", "n/1")
    stage.engine("g", devices=("n/0", "n/1"), weights=10)
    grant = only(Grant, stage.demand("g", 1))
    revision = stage.took(grant)
    stage.engine("x", devices=("n/0",), weights=10)
    stage.demand("x", 1)
    stage.now = 155.0
    busy = only(Grant, stage.see(stage.device("n/0", closed=revision)))
    after = stage.took(busy)
    assert of(Reclaim, stage.at(170.0)) == []
    reclaim = only(Reclaim, stage.close(busy, after))
    assert [seat.device for seat in reclaim.seats] == ["n/0", "n/1"]


def lost(stage: Stage, weights: int = 60) -> None:
    stage.engine("a", Phase.RESIDENT, weights=weights)
    stage.gone("a")


def test_a_lost_owner_is_charged() -> None:
    stage = Stage()
    lost(stage)
    stage.engine("b", weights=60)
    assert stage.demand("b", 1) == []


def test_a_lost_owner_is_reclaimed_after_two_ttl_when_its_pages_are_needed() -> None:
    stage = Stage()
    lost(stage)
    stage.engine("b", weights=60)
    stage.demand("b", 1)
    assert of(Reclaim, stage.at(109.9)) == []
    reclaim = only(Reclaim, stage.at(110.0))
    assert reclaim.holder == holder("a")
    assert "lost: no lease for 10.0 s" in reclaim.decision.cause
    revision = stage.took(reclaim)
    assert orders(stage.close(reclaim, revision)) == [(Order.RESTORE, "b")]


def test_a_lost_owner_goes_before_any_resident() -> None:
    stage = Stage()
    lost(stage, weights=40)
    stage.engine("c", Phase.RESIDENT, weights=40)
    stage.now = 120.0
    stage.engine("b", weights=40)
    assert only(Reclaim, stage.demand("b", 1)).holder == holder("a")


def test_a_lost_owner_with_free_memory_is_left_alone_until_it_is_abandoned() -> None:
    stage = Stage()
    lost(stage)
    assert of(Reclaim, stage.at(100.0 + LIMITS.abandoned_s - 0.1)) == []
    reclaim = only(Reclaim, stage.at(100.0 + LIMITS.abandoned_s))
    assert reclaim.decision.cause == "holds pages of n/0 and has had no lease for 60 s"


def test_one_that_comes_back_is_not_reclaimed() -> None:
    stage = Stage()
    lost(stage)
    stage.engine("b", weights=60)
    stage.demand("b", 1)
    stage.now = 109.0
    stage.specs.pop("a")
    stage.see(stage.spec("a", weights=60), stage.residency("a", Phase.RESIDENT))
    assert of(Reclaim, stage.at(500.0)) == []


def test_another_start_of_it_does_not_vouch_for_the_lost_one() -> None:
    stage = Stage()
    lost(stage)
    stage.see(stage.spec("a", nonce="n2", weights=60), stage.residency("a", Phase.STARTING))
    assert only(Reclaim, stage.at(110.0)).holder == holder("a", "n1")


def test_the_dead_are_not_reclaimed_their_pages_are_on_their_way_back() -> None:
    stage = Stage()
    dead = Owner(holder("a"), Bytes(weights=60), alive=False)
    stage.see(stage.device(owners=(dead,)))
    stage.engine("b", weights=60)
    stage.demand("b", 1)
    assert of(Reclaim, stage.at(500.0)) == []
    assert orders(stage.see(stage.device(owners=()))) == [(Order.RESTORE, "b")]


def test_a_lost_owner_counts_from_this_leaders_time() -> None:
    stage = Stage()
    lost(stage)
    stage.now = 108.0
    stage.hear(LeadershipLost())
    stage.hear(LeadershipGained("election/2", 99))
    stage.engine("b", weights=60)
    stage.demand("b", 1)
    assert of(Reclaim, stage.at(117.9)) == []
    assert of(Reclaim, stage.at(118.0))


def test_a_lost_group_whose_other_device_waited_for_an_answer_is_thought_of_again() -> None:
    stage = Stage("n/0", "n/1")
    stage.engine("g", Phase.RESIDENT, devices=("n/0", "n/1"), weights=60)
    stage.gone("g")
    stage.engine("x", devices=("n/0",), weights=10)
    stage.engine("a", devices=("n/1",), weights=60)
    stage.now = 120.0
    failed = only(Grant, stage.demand("x", 1))
    assert stage.demand("a", 1) == []
    stage.demand("x", 0)
    stage.refused(failed)
    assert only(Reclaim, stage.at(stage.now + 1.0)).holder == holder("g")
