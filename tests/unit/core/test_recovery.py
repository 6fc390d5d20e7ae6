"""What the rest of the system can do to the leader: pages that serve nothing, restarts, new leaders, new stores."""

from __future__ import annotations

import pytest

from coordinator.core.commands import Grant
from coordinator.core.events import (
    Changed,
    DecisionSeen,
    DemandSeen,
    DeviceSeen,
    EpochSeen,
    Granted,
    LeadershipGained,
    LeadershipLost,
    Listed,
    SeatSeen,
    SpecSeen,
    TokenSeen,
)
from coordinator.core.model import Bytes, Demand, Epoch, Order, Owner, Phase, Policy
from coordinator.core.orders import effects_of
from coordinator.core.settings import Limits
from tests.helpers.stage import Stage, grants, holder, only, orders, routes

RESTORE, OFFLOAD = Order.RESTORE, Order.OFFLOAD


def test_pages_of_a_sleeper_are_tidied_up() -> None:
    stage = Stage()
    stage.engine("a")
    tidy = only(Grant, stage.see(stage.own("n/0", "a")))
    assert (tidy.order, tidy.decision.cause) == (OFFLOAD, "it holds pages that serve nothing")


def test_half_a_group_is_tidied_up() -> None:
    stage = Stage("n/0", "n/1")
    stage.engine("g", devices=("n/0", "n/1"))
    tidy = only(Grant, stage.see(stage.own("n/1", "g")))
    assert [seat.device for seat in tidy.seats] == ["n/0", "n/1"]


def test_tidying_up_in_vain_is_not_repeated_at_once() -> None:
    stage = Stage()
    stage.engine("a")
    tidy = only(Grant, stage.see(stage.own("n/0", "a")))
    revision = stage.took(tidy)
    stage.see(stage.device(closed=revision))
    assert orders(stage.answer(tidy, revision)) == []
    assert orders(stage.at(stage.now + 1.0)) == [(OFFLOAD, "a")]


def test_a_restore_whose_word_is_late_is_not_tidied_up() -> None:
    stage = Stage()
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    revision = stage.took(grant)
    assert orders(stage.close(grant, revision)) == []
    assert orders(stage.at(stage.now + Limits().answer_s - 0.1)) == []
    assert orders(stage.answer(grant, revision)) == []
    assert orders(stage.at(1000.0)) == []


def test_a_restore_whose_word_never_comes_is() -> None:
    stage = Stage()
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    revision = stage.took(grant)
    stage.close(grant, revision)
    assert orders(stage.at(stage.now + Limits().answer_s)) == [(OFFLOAD, "a")]


def test_a_resident_whose_pages_are_gone_is_asleep_once_its_word_is_late() -> None:
    stage = Stage()
    stage.engine("a", Phase.RESIDENT)
    assert routes(stage.see(stage.disown("n/0", "a"))) == {"a": []}
    assert stage.demand("a", 1) == []
    assert orders(stage.at(stage.now + Limits().answer_s)) == [(RESTORE, "a")]


def test_an_engine_that_says_nothing_is_left_alone() -> None:
    stage = Stage()
    stage.see(stage.spec("a"))
    assert stage.demand("a", 1) == []
    assert orders(stage.see(stage.residency("a", Phase.OFFLOADED))) == [(RESTORE, "a")]


def test_a_repeated_or_late_delivery_changes_nothing() -> None:
    stage = Stage()
    stage.engine("a")
    old = Changed((stage.device(),), stage.revision)
    stage.hear(old)
    grant = only(Grant, stage.demand("a", 1))
    revision = stage.took(grant)
    stage.close(grant, revision)
    charged = stage.scheduler.view().devices[0].charged
    assert stage.hear(old) == []
    assert stage.scheduler.view().devices[0].charged == charged == 40


def test_the_watch_that_shows_an_own_grant_later_changes_nothing() -> None:
    stage = Stage()
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    revision = stage.took(grant)
    assert stage.hear(Changed(tuple(effects_of(grant, revision)), revision)) == []


def test_a_grant_whose_token_is_gone_again_when_the_answer_comes_is_not_believed() -> None:
    """The watch was faster: the lease has died since."""
    stage = Stage()
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    revision = stage.shown(grant)
    stage.gone("a")
    assert stage.hear(Granted(grant.id, revision)) == []
    assert stage.scheduler._ledger.devices["n/0"].token is None  # type: ignore[index]


def test_a_grant_of_an_earlier_life_of_the_store_is_not_believed() -> None:
    stage = Stage()
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    state = stage.state(epoch="life-2")
    stage.hear(Listed((EpochSeen(Epoch(id="life-2"), 1), DeviceSeen("n/0", state, 2)), 2))  # type: ignore[arg-type]
    assert stage.scheduler.view().devices[0].blocked == ""
    stage.hear(Granted(grant.id, 900))
    assert stage.scheduler.view().devices[0].blocked == ""


def test_a_grant_of_an_earlier_epoch_of_the_same_store_is_not_believed() -> None:
    stage = Stage()
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    revision = stage.next()
    stage.see(EpochSeen(Epoch(id="life-2"), revision))
    stage.hear(Granted(grant.id, revision - 1))
    assert stage.scheduler.view().devices[0].seat is None


def test_what_a_listing_does_not_name_is_not_brought_back_by_anything_older() -> None:
    stage = Stage()
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    stage.hear(Listed((EpochSeen(Epoch(id="life-1"), 1),), 500))
    stage.hear(Granted(grant.id, 400))
    assert stage.scheduler.view().devices == ()


def test_a_failure_is_counted_once_however_often_it_is_told() -> None:
    stage = Stage()
    stage.engine("a")
    revision = stage.took(only(Grant, stage.demand("a", 1)))
    stage.see(stage.device(closed=revision))
    for _ in range(3):
        stage.see(stage.residency("a", Phase.OFFLOADED, fence=revision, error="denied"))
    assert stage.scheduler.view().engines[0].failures == 1


def test_a_new_leader_serves_every_device_however_many_wait() -> None:
    devices = [f"n/{number}" for number in range(100)]
    stage = Stage(*devices, lead=False)
    for number, device in enumerate(devices):
        stage.engine(f"m{number}", devices=(device,))
        stage.demand(f"m{number}", 1)
    assert len(grants(stage.hear(LeadershipGained("e", 9)))) == 100


def test_a_new_life_of_the_store_begins_from_owners() -> None:
    """Leases are void, nothing is known but what the daemon publishes; engines register again and are served."""
    stage = Stage()
    stage.engine("a", Phase.RESIDENT, weights=60)
    stage.engine("b", weights=60)
    stage.hear(Listed((EpochSeen(Epoch(id="life-2"), 1),), 1))
    stage.revision = 1
    stage.specs.clear()
    assert stage.demand("b", 1) == []
    assert stage.see(stage.device(epoch="life-2")) == []
    stage.see(stage.spec("a", weights=60), stage.residency("a", Phase.RESIDENT))
    offload = only(Grant, stage.see(stage.spec("b", weights=60), stage.residency("b", Phase.OFFLOADED)))
    assert (offload.order, offload.holder.engine, offload.epoch) == (OFFLOAD, "a", "life-2")


def test_a_new_epoch_in_the_same_store_forgets_what_was_ordered() -> None:
    """The operator deleted epoch, tokens and seats after a snapshot was restored."""
    stage = Stage()
    stage.engine("a", Phase.RESIDENT, weights=60)
    stage.engine("b", weights=60)
    stage.took(only(Grant, stage.demand("b", 1)))
    revision = stage.next()
    stage.see(
        EpochSeen(Epoch(id="life-2"), revision),
        SeatSeen("n/0", None, revision),  # type: ignore[arg-type]
        TokenSeen("n/0", None, revision),  # type: ignore[arg-type]
    )
    assert orders(stage.see(stage.device(epoch="life-2", closed=0))) == [(OFFLOAD, "a")]


def test_a_new_leader_goes_on_from_what_it_lists() -> None:
    """Another's offload is under way: nothing is granted until it is closed, and then the queue is served."""
    first, second = Stage(), Stage(lead=False)
    for stage in (first, second):
        stage.engine("a", Phase.RESIDENT, weights=60)
        stage.engine("b", weights=60)
    offload = only(Grant, first.demand("b", 1))
    revision = second.shown(offload)
    second.demand("b", 1)
    assert not grants(second.hear(LeadershipGained("election/2", 50)))
    grant = only(Grant, second.close(offload, revision))
    assert (grant.holder.engine, grant.election_key, grant.election_revision) == ("b", "election/2", 50)


def test_a_leader_again_expects_no_old_answers() -> None:
    stage = Stage()
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    stage.hear(LeadershipLost())
    again = only(Grant, stage.hear(LeadershipGained("election/2", 50)))
    assert again.id != grant.id
    assert stage.refused(grant) == []
    assert stage.scheduler.view().pending[0].id == again.id


def test_decisions_are_numbered_above_those_that_stand() -> None:
    stage = Stage()
    stage.hear(Changed((DecisionSeen(55), DecisionSeen(7)), stage.next()))
    stage.engine("a")
    assert only(Grant, stage.demand("a", 1)).decision.n == 56


def test_a_listing_keeps_posted_demand_and_drops_what_it_does_not_name() -> None:
    stage = Stage()
    stage.engine("a")
    spec, said = stage.spec("b"), stage.residency("b", Phase.OFFLOADED)
    stage.see(spec, said)
    remote = DemandSeen("there", "b", Demand(waiting=1))  # type: ignore[arg-type]
    stage.hear(LeadershipLost())
    stage.hear(Changed((remote,), stage.next()))
    stage.demand("a", 2)
    a = (stage.spec("a"), stage.residency("a", Phase.OFFLOADED))
    device = DeviceSeen("n/0", stage.states["n/0"], 3)  # type: ignore[arg-type]
    stage.hear(Listed((EpochSeen(Epoch(id="life-1"), 1), device, spec, said, *a), stage.revision))
    assert {model.id: model.waiting for model in stage.scheduler.view().models} == {"a": 2, "b": 0}
    assert orders(stage.hear(LeadershipGained("e", 9))) == [(RESTORE, "a")]


def test_a_listing_without_a_policy_ends_the_policy() -> None:
    stage = Stage()
    stage.engine("a", Phase.RESIDENT)
    stage.policy("a", Policy(pin=True))
    assert stage.scheduler.settings("a").pin  # type: ignore[arg-type]
    stage.hear(Listed((EpochSeen(Epoch(id="life-1"), 1),), stage.next()))
    assert not stage.scheduler.settings("a").pin  # type: ignore[arg-type]


def test_a_posted_demand_is_believed_before_its_key() -> None:
    stage = Stage()
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    stage.done(grant)
    stage.demand("a", 0)
    late = DemandSeen("here", "a", Demand(waiting=1))  # type: ignore[arg-type]
    stage.hear(Changed((late,), stage.next()))
    assert stage.scheduler.view().models[0].waiting == 0


@pytest.mark.parametrize("broken", [True, False])
def test_least_recent_use_survives_a_broken_watch(broken: bool) -> None:
    stage = Stage()
    stage.engine("a", Phase.RESIDENT)
    stage.now += 10.0
    stage.engine("b", Phase.RESIDENT)
    stage.now += 10.0
    facts = []
    for engine in ("a", "b"):
        spec, revision, lease = stage.specs[engine]
        facts += [SpecSeen(engine, spec, revision, lease), stage.residency(engine, Phase.RESIDENT)]  # type: ignore[arg-type]
    device = DeviceSeen("n/0", stage.states["n/0"], 3)  # type: ignore[arg-type]
    if broken:
        stage.hear(Listed((EpochSeen(Epoch(id="life-1"), 1), device, *facts), stage.revision))
    stage.engine("c")
    offload = only(Grant, stage.demand("c", 1))
    assert [c.why for c in offload.decision.candidates] == ["idle for 20.0 s", "idle for 10.0 s"]


def test_owners_of_one_holder_are_added_up() -> None:
    """A group's processes may be listed one by one."""
    stage = Stage()
    owners = (Owner(holder("a"), Bytes(weights=30), pid=1), Owner(holder("a"), Bytes(weights=30, kv=5), pid=2))
    stage.see(stage.device(owners=owners))
    view = stage.scheduler.view().devices[0]
    assert (view.charged, view.owners[0].bytes) == (65, Bytes(weights=60, kv=5))


def test_what_the_watch_brings_late_does_not_undo_an_own_grant() -> None:
    """The answer overtakes the watch: then an older change of the same keys comes."""
    stage = Stage()
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    older = stage.next()
    revision = stage.took(grant)
    gone = (SeatSeen("n/0", None, older), TokenSeen("n/0", None, older))  # type: ignore[arg-type]
    assert stage.hear(Changed(gone, older)) == []
    entry = stage.scheduler._ledger.devices["n/0"]  # type: ignore[index]
    assert (entry.seat_revision, entry.token_revision) == (revision, revision)
    assert entry.seat is not None
    assert entry.token is not None


def test_its_own_pages_are_not_charged_to_a_newcomer() -> None:
    stage = Stage()
    stage.engine("a", Phase.RESIDENT, weights=60)
    ledger = stage.scheduler._ledger
    a = ledger.engines["a"]  # type: ignore[index]
    assert ledger.others(a, "n/0") == 0  # type: ignore[arg-type]
    stage.engine("b", Phase.RESIDENT, weights=10, overhead=3)
    assert ledger.others(a, "n/0") == 13  # type: ignore[arg-type]
    b = ledger.engines["b"]  # type: ignore[index]
    assert ledger.others(b, "n/0") == 60  # type: ignore[arg-type]
