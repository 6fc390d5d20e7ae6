"""PROTOCOL rules 2-4: when something is granted, and to whom."""

from __future__ import annotations

import pytest

from coordinator.core.commands import Grant
from coordinator.core.events import DeviceSeen, EpochSeen, LeadershipLost
from coordinator.core.model import Bytes, Epoch, Order, Owner, Phase
from coordinator.core.settings import Limits
from tests.helpers.stage import KEY, Stage, grants, holder, only, orders

RESTORE, OFFLOAD = Order.RESTORE, Order.OFFLOAD


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_demand_that_fits_is_restored(stage: Stage) -> None:
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 2))
    spec, revision, lease = stage.specs["a"]
    assert (grant.order, grant.holder, grant.lease, grant.spec_revision) == (RESTORE, spec.holder, lease, revision)
    assert (grant.epoch, grant.election_key, grant.election_revision) == ("life-1", KEY, 7)
    assert [(seat.device, seat.revision) for seat in grant.seats] == [("n/0", 0)]
    assert (grant.bytes, grant.limit_s) == (40, 60.0)
    assert grant.decision.cause == "2 requests wait for 0.00 s"
    assert (grant.decision.n, grant.decision.at, grant.decision.order) == (0, 0.0, RESTORE)


def test_one_restore_however_many_wait(stage: Stage) -> None:
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    assert stage.demand("a", 200) == []
    revision = stage.took(grant)
    assert not grants(stage.demand("a", 300))
    assert not grants(stage.close(grant, revision))
    assert not grants(stage.demand("a", 400))
    assert not grants(stage.answer(grant, revision))


def test_several_are_resident_when_they_fit(stage: Stage) -> None:
    stage.engine("a")
    stage.engine("b")
    stage.done(only(Grant, stage.demand("a", 1)))
    assert orders(stage.demand("b", 1)) == [(RESTORE, "b")]


def test_a_victim_leaves_first_and_then_the_newcomer_comes(stage: Stage) -> None:
    stage.engine("a", Phase.RESIDENT, weights=60)
    stage.engine("b", weights=60)
    offload = only(Grant, stage.demand("b", 1))
    assert (offload.order, offload.holder.engine, offload.bytes, offload.limit_s) == (OFFLOAD, "a", 0, 60.0)
    assert [c.engine for c in offload.decision.candidates] == ["a"]
    revision = stage.took(offload)
    restore = only(Grant, stage.close(offload, revision))
    assert (restore.order, restore.holder.engine) == (RESTORE, "b")
    assert restore.seats[0].revision == revision


def test_the_device_key_moves_the_leader_on_and_not_the_residency(stage: Stage) -> None:
    stage.engine("a", Phase.RESIDENT, weights=60)
    stage.engine("b", weights=60)
    offload = only(Grant, stage.demand("b", 1))
    revision = stage.took(offload)
    assert not grants(stage.answer(offload, revision))
    assert orders(stage.close(offload, revision)) == [(RESTORE, "b")]


def test_nothing_is_granted_while_a_seat_is_unclosed(stage: Stage) -> None:
    stage.engine("a")
    stage.engine("b")
    grant = only(Grant, stage.demand("a", 1))
    revision = stage.took(grant)
    assert stage.demand("b", 1) == []
    assert stage.see(stage.own("n/0", "a")) == []
    assert orders(stage.close(grant, revision)) == [(RESTORE, "b")]


def test_nothing_is_granted_while_a_transaction_is_unanswered(stage: Stage) -> None:
    stage.engine("a")
    stage.engine("b")
    grant = only(Grant, stage.demand("a", 1))
    assert stage.demand("b", 1) == []
    assert orders(stage.refused(grant)) == []
    assert orders(stage.at(stage.now + 1.0)) == [(RESTORE, "a")]


def test_a_lost_answer_is_overtaken_by_the_watch(stage: Stage) -> None:
    stage.engine("a")
    stage.engine("b")
    grant = only(Grant, stage.demand("a", 1))
    stage.demand("b", 1)
    revision = stage.shown(grant)
    assert orders(stage.close(grant, revision)) == [(RESTORE, "b")]
    assert stage.refused(grant) == []


def test_a_refused_transaction_is_retried_at_once_when_the_picture_changed_meanwhile(stage: Stage) -> None:
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    stage.see(stage.spec("a", weights=50))
    again = only(Grant, stage.refused(grant, "a compare failed"))
    assert again.spec_revision == stage.specs["a"][1]
    assert again.decision.n == grant.decision.n + 1


def test_a_refused_transaction_is_retried_as_soon_as_something_changes(stage: Stage) -> None:
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    assert stage.refused(grant) == []
    assert orders(stage.see(stage.spec("a"))) == [(RESTORE, "a")]


def test_a_standby_orders_nothing() -> None:
    stage = Stage(lead=False)
    stage.engine("a")
    assert stage.demand("a", 1) == []


def test_a_leader_that_resigned_orders_nothing(stage: Stage) -> None:
    stage.engine("a")
    stage.hear(LeadershipLost())
    assert stage.demand("a", 1) == []


@pytest.mark.parametrize("state", [None, "other epoch"])
def test_nothing_is_granted_without_the_daemons_key_in_this_epoch(stage: Stage, state: str | None) -> None:
    stage.engine("a")
    gone = DeviceSeen("n/0", None, stage.next())  # type: ignore[arg-type]
    stage.see(gone if state is None else stage.device(epoch=state))
    assert stage.demand("a", 1) == []
    assert orders(stage.see(stage.device(epoch="life-1"))) == [(RESTORE, "a")]


def test_nothing_is_granted_without_an_epoch_nor_before_devices_are_in_it(stage: Stage) -> None:
    stage.engine("a")
    stage.see(EpochSeen(None, stage.next()))
    assert stage.demand("a", 1) == []
    assert stage.see(EpochSeen(Epoch(id="life-2"), stage.next())) == []
    grant = only(Grant, stage.see(stage.device(epoch="life-2")))
    assert grant.epoch == "life-2"


def test_nothing_is_granted_when_the_daemon_has_seen_a_later_store(stage: Stage) -> None:
    stage.engine("a")
    stage.see(stage.device(closed=stage.revision + 1000))
    assert stage.demand("a", 1) == []


def test_what_is_charged_is_owned_and_nothing_else(stage: Stage) -> None:
    """A resident word without pages charges nothing; pages without a word do."""
    stage.engine("a", weights=60)
    stage.see(stage.residency("a", Phase.RESIDENT))
    stage.engine("b", weights=60)
    assert orders(stage.demand("b", 1)) == [(RESTORE, "b")]
    other = Stage()
    other.see(other.device(owners=(Owner(holder("ghost"), Bytes(weights=60)),)))
    other.engine("b", weights=60)
    assert other.demand("b", 1) == []


def test_cached_pages_stand_in_nobodys_way(stage: Stage) -> None:
    stage.see(stage.device(owners=(Owner(holder("a"), Bytes(cached=90)),)))
    stage.engine("b", weights=60)
    assert orders(stage.demand("b", 1)) == [(RESTORE, "b")]


def test_kinds_are_rounded_up_to_chunks_of_their_own() -> None:
    stage = Stage(chunk=10)
    stage.engine("a", weights=41, kv=41)
    grant = only(Grant, stage.demand("a", 1))
    assert grant.bytes == 100
    other = Stage(chunk=10)
    other.engine("b", weights=51, kv=41)
    assert "needs 110 B" in other.demand("b", 1)[0].reason  # type: ignore[union-attr]


def test_overheads_of_processes_that_live_there_are_kept_free(stage: Stage) -> None:
    stage.engine("a", weights=40, overhead=20)
    stage.engine("b", weights=50, overhead=20)
    grant = only(Grant, stage.demand("b", 1))
    assert grant.bytes == 50
    tight = Stage()
    tight.engine("a", weights=40, overhead=31)
    tight.engine("b", weights=50, overhead=20)
    assert "needs 70 B of n/0" in tight.demand("b", 1)[0].reason  # type: ignore[union-attr]


def test_an_estimate_may_be_exceeded_by_a_tenth_where_there_is_room(stage: Stage) -> None:
    stage.engine("a", Phase.STARTING, weights=40, measured=False)
    assert only(Grant, stage.said).bytes == 44
    tight = Stage()
    tight.engine("a", Phase.STARTING, weights=98, measured=False)
    assert only(Grant, tight.said).bytes == 100


def test_a_group_gets_all_its_devices_in_one_transaction() -> None:
    stage = Stage("n/0", "n/1")
    stage.engine("g", devices=("n/0", "n/1"))
    grant = only(Grant, stage.demand("g", 1))
    assert [seat.device for seat in grant.seats] == ["n/0", "n/1"]


def test_a_group_waits_until_all_its_devices_are_ready() -> None:
    stage = Stage("n/0", "n/1")
    stage.engine("g", devices=("n/0", "n/1"))
    stage.engine("x", devices=("n/1",))
    busy = only(Grant, stage.demand("x", 1))
    revision = stage.took(busy)
    assert stage.demand("g", 1) == []
    assert orders(stage.close(busy, revision)) == [(RESTORE, "g")]


def test_a_group_is_not_starved_by_short_operations_on_its_devices() -> None:
    """While it waits for one device, the other is kept for it."""
    stage = Stage("n/0", "n/1")
    for engine, device in (("x", "n/1"), ("y", "n/0")):
        stage.engine(engine, devices=(device,), weights=10)
    stage.engine("g", devices=("n/0", "n/1"))
    busy = only(Grant, stage.demand("x", 1))
    revision = stage.took(busy)
    stage.demand("g", 1)
    stage.now += 0.1
    assert stage.demand("y", 1) == []
    assert orders(stage.close(busy, revision)) == [(RESTORE, "g")]


def test_nobody_waits_for_a_group_that_waits_for_a_start_up() -> None:
    stage = Stage("n/0", "n/1")
    stage.engine("y", devices=("n/0",), weights=10)
    stage.engine("g", devices=("n/0", "n/1"))
    stage.engine("x", Phase.STARTING, devices=("n/1",), weights=10)
    stage.took(only(Grant, stage.said))
    assert stage.demand("g", 1) == []
    stage.now += 0.1
    assert orders(stage.demand("y", 1)) == [(RESTORE, "y")]


def test_decisions_are_numbered_on_from_what_stands() -> None:
    stage = Stage(next_decision=7)
    stage.engine("a")
    assert only(Grant, stage.demand("a", 1)).decision.n == 7


def test_start_up_is_a_restore_with_a_long_limit(stage: Stage) -> None:
    stage.engine("a", Phase.STARTING)
    grant = only(Grant, stage.said)
    assert (grant.order, grant.limit_s) == (RESTORE, Limits().startup_s)
    assert grant.decision.cause == "its start-up waits for 0.00 s"


def test_start_ups_come_in_the_order_of_their_specs() -> None:
    stage = Stage(lead=True)
    blocker = stage.engine("z", Phase.STARTING)
    facts = [stage.spec("b"), stage.spec("a")]
    said = [stage.residency(engine, Phase.STARTING) for engine in ("a", "b")]
    stage.see(*facts, *said)
    first = only(Grant, blocker)
    assert orders(stage.close(first, stage.took(first))) == [(RESTORE, "b")]


def test_requests_go_before_start_ups_that_came_a_little_earlier(stage: Stage) -> None:
    stage.engine("z")
    stage.engine("r")
    running = only(Grant, stage.demand("z", 1))
    stage.engine("s", Phase.STARTING, weights=10)
    stage.now += 5.0
    stage.demand("r", 1)
    revision = stage.took(running)
    assert orders(stage.close(running, revision)) == [(RESTORE, "r")]


def test_a_start_up_that_waited_long_goes_before_requests(stage: Stage) -> None:
    stage.engine("z")
    stage.engine("r")
    running = only(Grant, stage.demand("z", 1))
    revision = stage.took(running)
    stage.engine("s", Phase.STARTING, weights=10)
    stage.now += Limits().startup_delay_s + 1.0
    stage.demand("r", 1)
    assert orders(stage.close(running, revision)) == [(RESTORE, "s")]


def test_a_start_up_whose_model_is_wanted_is_as_urgent_as_the_requests(stage: Stage) -> None:
    stage.engine("z")
    stage.engine("r")
    running = only(Grant, stage.demand("z", 1))
    revision = stage.took(running)
    stage.engine("s", Phase.STARTING, weights=10)
    stage.now += 1.0
    stage.demand("s", 1)
    stage.now += 1.0
    stage.demand("r", 1)
    assert orders(stage.close(running, revision)) == [(RESTORE, "s")]


def test_requests_at_the_engines_own_port_are_demand(stage: Stage) -> None:
    stage.engine("a")
    assert orders(stage.load("a", waiting=1)) == [(RESTORE, "a")]


def test_frozen_requests_bring_their_engine_back(stage: Stage) -> None:
    stage.engine("a")
    assert orders(stage.load("a", running=1)) == [(RESTORE, "a")]


def test_demand_of_several_gateways_adds_up(stage: Stage) -> None:
    stage.engine("a")
    stage.hear(LeadershipLost())
    stage.demand("a", 2, "one")
    stage.demand("a", 3, "two")
    assert stage.scheduler.view().models[0].waiting == 5


def test_one_engine_of_a_model_is_restored_and_no_other_meanwhile() -> None:
    stage = Stage("n/0", "n/1")
    stage.engine("a0", model="a", devices=("n/0",))
    stage.engine("a1", model="a", devices=("n/1",))
    grant = only(Grant, stage.demand("a", 1))
    stage.demand("a", 9)
    revision = stage.took(grant)
    stage.demand("a", 10)
    stage.close(grant, revision)
    stage.answer(grant, revision)
    assert orders(stage.said) == [(RESTORE, "a0")]


def test_no_other_engine_of_a_model_is_asked_for_while_one_is() -> None:
    """The better one becomes free while the transaction for the other is not answered yet."""
    stage = Stage("n/0", "n/1")
    stage.engine("x", devices=("n/0",), weights=10)
    stage.engine("a0", model="a", devices=("n/0",))
    stage.engine("a1", model="a", devices=("n/1",))
    busy = only(Grant, stage.demand("x", 1))
    revision = stage.took(busy)
    stage.policy("a", None)
    stage.said.clear()
    stage.demand("a", 1)
    asked = orders(stage.said)
    stage.close(busy, revision)
    assert (asked, orders(stage.said)) == ([(RESTORE, "a1")], [(RESTORE, "a1")])
