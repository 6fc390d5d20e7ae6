"""The small parts, each by itself."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.core.alarms import Alarms
from coordinator.core.demand import Demand, Queue, Waiter
from coordinator.core.entries import pages, rounded
from coordinator.core.events import DemandSeen, DeviceSeen, SpecSeen
from coordinator.core.ledger import Ledger
from coordinator.core.ledger_check import LedgerBroken
from coordinator.core.model import Bytes, Phase, Policy
from coordinator.core.model import Demand as Waiting
from coordinator.core.policies.lru import LeastRecentlyUsed
from coordinator.core.policy import Resident, Score, Wanted
from coordinator.core.settings import Limits, Settings
from coordinator.core.ties import Ties
from coordinator.core.view import State
from coordinator.core.words import requests, size
from tests.helpers.stage import Stage, only, orders


def test_alarms_keep_the_earliest_and_fall_due_in_order() -> None:
    alarms = Alarms()
    alarms.set("device", "a", 9.0)
    alarms.set("device", "a", 5.0)
    alarms.set("device", "a", 7.0)
    alarms.set("model", "b", 6.0)
    alarms.set("model", "c", float("inf"))
    assert alarms.next() == 5.0
    assert alarms.due(6.0) == [("device", "a"), ("model", "b")]
    assert alarms.next() is None
    alarms.set("device", "a", 12.0)
    assert alarms.next() == 12.0


def test_a_cleared_alarm_is_not_heard() -> None:
    alarms = Alarms()
    alarms.set("device", "a", 5.0)
    alarms.clear("device", "a")
    alarms.set("device", "a", 8.0)
    assert (alarms.next(), alarms.due(7.0), alarms.due(8.0)) == (8.0, [], [("device", "a")])


def test_alarms_set_again_and_again_take_no_room() -> None:
    alarms = Alarms()
    for number in range(10_000):
        alarms.clear("device", "a")
        alarms.set("device", "a", 1000.0 + number)
    assert len(alarms._heap) < 100
    assert alarms.next() == 10_999.0


def test_ties_are_good_for_one_change() -> None:
    ties = Ties()
    ties.tie("a", ("a", "b", "c"))  # type: ignore[arg-type]
    assert ties.take(["a"]) == {"b", "c"}  # type: ignore[list-item]
    assert ties.take(["a"]) == set()  # type: ignore[list-item]


def test_a_gateway_that_posts_here_is_believed_more_than_its_key() -> None:
    demand = Demand()
    demand.see(DemandSeen("here", "m", Waiting(waiting=4)))  # type: ignore[arg-type]
    demand.see(DemandSeen("there", "m", Waiting(waiting=1)))  # type: ignore[arg-type]
    demand.post(DemandSeen("here", "m", Waiting(waiting=2)))  # type: ignore[arg-type]
    assert demand.waiting("m") == 3  # type: ignore[arg-type]
    demand.see(DemandSeen("here", "m", Waiting(waiting=9)))  # type: ignore[arg-type]
    assert demand.waiting("m") == 3  # type: ignore[arg-type]
    assert demand.forget_seen() == {"m"}
    assert demand.waiting("m") == 2  # type: ignore[arg-type]
    demand.post(DemandSeen("here", "m", None))  # type: ignore[arg-type]
    assert demand.models == frozenset()


def waiter(model: str, due: float, *devices: str) -> Waiter:
    return Waiter(model, None, due, due, (0, 0, ""), devices)  # type: ignore[arg-type]


def test_the_queue_is_in_order_and_knows_what_belongs_together() -> None:
    queue = Queue()
    for each in (waiter("late", 3, "a"), waiter("group", 2, "a", "b"), waiter("first", 1, "b"), waiter("far", 0, "z")):
        queue.enter(each)
    assert [each.model for each in queue.in_order(["a", "b"])] == ["first", "group", "late"]  # type: ignore[list-item]
    assert queue.groups(["a", "z", "q"]) == [["a", "b"], ["q"], ["z"]]  # type: ignore[list-item]
    queue.leave("group")  # type: ignore[arg-type]
    assert queue.groups(["a", "b"]) == [["a"], ["b"]]  # type: ignore[list-item]


def test_footprints_are_rounded_kind_by_kind() -> None:
    assert pages(Bytes(weights=9, kv=1), 8) == 24
    assert rounded(Bytes(weights=9, kv=1, overhead=3), 8) == 27
    assert pages(Bytes(), 8) == 0
    assert pages(Bytes(weights=5), 0) == 5


def test_settings_are_overridden_field_by_field() -> None:
    settings = Settings(priority=3, keep_alive=None)
    assert settings.overridden(None) is settings
    changed = settings.overridden(Policy(pin=True, max_wait=4.0, drained=True))
    assert changed == Settings(pin=True, priority=3, keep_alive=None, max_wait=4.0, drained=True)
    assert settings.overridden(Policy(keep_alive=0.0, priority=0, min_residency=1.0)) == Settings(
        priority=0, keep_alive=0.0, min_residency=1.0
    )


def test_back_off_doubles_up_to_its_most() -> None:
    assert [Limits().backoff(n) for n in (1, 2, 3, 7, 10_000)] == [1.0, 2.0, 4.0, 60.0, 60.0]


def score(*, busy: bool = False, priority: int = 0, active_at: float = 90.0, least: float = 2.0) -> Score:
    settings = Settings(priority=priority, min_residency=least)
    resident = Resident("a", "a", settings, 40, busy, 80.0, active_at)  # type: ignore[arg-type]
    return LeastRecentlyUsed().score(resident, Wanted("b", "b", Settings(), 99.0), 100.0)  # type: ignore[arg-type]


def test_scores_idle_before_busy_then_priority_then_use() -> None:
    inorder = [
        score(priority=-1, active_at=99.0),
        score(active_at=50.0),
        score(active_at=60.0),
        score(priority=1, active_at=0.0),
        score(busy=True, priority=-5, active_at=100.0),
        score(busy=True, active_at=100.0),
    ]
    assert sorted(inorder, key=lambda each: each.value) == inorder


def test_scores_say_from_when() -> None:
    assert score(least=5.0).not_before == 85.0
    assert score(least=5.0, busy=True).not_before == 104.0
    assert score(least=5.0, busy=True).why == "busy, stays 4.0 s more"
    assert score(priority=2).why == "idle for 10.0 s, priority 2"


def test_words() -> None:
    assert [size(n) for n in (0, 1000, 1536, 2 << 20, 3 << 30, 5 << 40)] == [
        "0 B", "1000 B", "1.5 KiB", "2 MiB", "3 GiB", "5 TiB",
    ]  # fmt: skip
    assert (requests(1), requests(2)) == ("1 request", "2 requests")


@pytest.mark.parametrize("broken", ["models", "engines", "charged", "places", "lost"])
def test_a_ledger_that_contradicts_itself_is_noticed(broken: str) -> None:
    stage = Stage()
    stage.engine("a", Phase.RESIDENT)
    ledger: Ledger = stage.scheduler._ledger
    entry = ledger.devices["n/0"]  # type: ignore[index]
    match broken:
        case "models":
            ledger.models.clear()
        case "engines":
            entry.engines.clear()
        case "charged":
            entry.charged += 1
        case "places":
            ledger._places.clear()
        case _:
            entry.lost_at[stage.specs["a"][0].holder] = 0.0
    with pytest.raises(LedgerBroken):
        ledger.check()


def test_what_is_gone_leaves_nothing_behind() -> None:
    stage = Stage()
    stage.engine("a", Phase.RESIDENT)
    stage.load("a", running=1)
    stage.gone("a")
    stage.see(stage.disown("n/0", "a"))
    stage.see(DeviceSeen("n/0", None, stage.next()))  # type: ignore[arg-type]
    ledger = stage.scheduler._ledger
    assert (ledger.engines, ledger.devices, ledger.models, ledger._places) == ({}, {}, {}, {})


def test_an_engine_that_changes_its_devices_is_indexed_anew() -> None:
    stage = Stage("n/0", "n/1")
    stage.engine("a", devices=("n/0",))
    spec: SpecSeen = stage.spec("a", "n/1")
    stage.see(spec)
    ledger = stage.scheduler._ledger
    assert ledger.devices["n/0"].engines == set()  # type: ignore[index]
    assert ledger.devices["n/1"].engines == {"a"}  # type: ignore[index]


def test_the_view_says_everything_and_is_json() -> None:
    stage = Stage(models={"b": Settings(priority=4, keep_alive=None)})
    stage.engine("a", Phase.RESIDENT, weights=60)
    stage.engine("b", weights=60)
    stage.now += 3.0
    stage.demand("b", 2)
    view = stage.scheduler.view()
    assert msgspec.json.decode(msgspec.json.encode(view), type=State) == view
    (device,) = view.devices
    assert (device.charged, device.capacity, device.present) == (60, 100, True)
    assert device.blocked == "transaction 1 on n/0 is not answered yet"
    a, b = view.engines
    assert (a.standing, a.idle_s, b.standing, b.phase) == ("serving", 3.0, "asleep", Phase.OFFLOADED)
    waiting = {model.id: (model.waiting, model.waiting_s, model.settings.priority) for model in view.models}
    assert waiting == {"a": (0, None, 0), "b": (2, 0.0, 4)}
    (pending,) = view.pending
    assert (pending.engine, pending.order, pending.devices) == ("a", "offload", ("n/0",))
    assert (view.leading, view.epoch, view.next_decision) == (True, "life-1", 1)


def test_the_view_names_lost_owners_and_pending_reclaims() -> None:
    from coordinator.core.commands import Reclaim

    stage = Stage()
    stage.engine("a", Phase.RESIDENT)
    stage.gone("a")
    stage.now += 4.0
    stage.hear(DemandSeen("g", "nobody", Waiting(waiting=1)))  # type: ignore[arg-type]
    view = stage.scheduler.view()
    assert view.devices[0].owners[0].lost_s == 4.0
    assert [model.id for model in view.models] == ["nobody"]
    reclaim = only(Reclaim, stage.at(200.0))
    assert stage.scheduler.view().pending[0].order == "reclaim"
    assert orders(stage.refused(reclaim)) == []
