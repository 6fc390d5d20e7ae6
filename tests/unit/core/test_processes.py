"""Engines that are started when they are needed and stopped when their memory is: what the scheduler orders."""

from __future__ import annotations

from coordinator.core.commands import Direct
from coordinator.core.events import DeviceSeen, Granted, GrantRefused, ProcessOrderSeen, ProcessSeen
from coordinator.core.model import DeviceId, EngineId, Order, Phase, Policy
from coordinator.core.orders import Orders
from coordinator.core.process import Life, ProcessOrder, Wish
from coordinator.core.settings import Limits
from coordinator.core.starts import Starts
from tests.helpers.kept import KEEPER, KeptStage, directs
from tests.helpers.stage import grants, of, only, orders, refusals, routes

RUN, CLOSE, STOP = Wish.RUN, Wish.CLOSE, Wish.STOP


def running(*engines: str, budget: int = 100, **kept: object) -> KeptStage:
    """These were asked for, and run; each for longer than its start took. Device and budget hold two."""
    stage = KeptStage(budget=budget)
    for engine in engines:
        stage.keep(engine, **kept)  # type: ignore[arg-type]
        stage.obeyed(only(Direct, stage.demand(engine, 1)))
        stage.run(engine)
        stage.demand(engine, 0)
    stage.ram(budget, masters=40 * len(engines))
    stage.at(stage.now + 100.0)
    return stage


def test_nobody_asks_nothing_starts() -> None:
    stage = KeptStage()
    assert directs(stage.keep("a")) == []
    (shown,) = stage.scheduler.view().engines
    assert (shown.id, shown.phase, shown.standing) == ("a", Phase.STOPPED, "stopped")


def test_a_request_starts_it_and_is_served() -> None:
    stage = KeptStage()
    stage.keep("a")
    direct = only(Direct, stage.demand("a", 1))
    assert (direct.engine, direct.order.wish, direct.order.keeper, direct.revision) == ("a", RUN, KEEPER, 0)
    assert (direct.decision.order, direct.decision.wanted) == (Order.RUN, "a")
    assert directs(stage.obeyed(direct)) == []
    stage.life("a", Life.STARTING)
    said = stage.engine("a", Phase.STARTING)
    assert orders(said) == [(Order.RESTORE, "a")]
    assert routes(stage.done(grants(said)[0])) == {"a": ["a"]}


def test_an_operator_may_wake_it() -> None:
    stage = KeptStage()
    stage.keep("a")
    assert directs(stage.ask("a", Order.RESTORE)) == [(RUN, "a")]


def test_an_eager_process_is_nobodys_business() -> None:
    stage = KeptStage(budget=10)
    stage.keep("e", lazy=False)
    assert directs(stage.demand("e", 1)) == []
    stage.keep("a", size=5, weights=5)
    assert directs(stage.demand("a", 1)) == [(RUN, "a")]


def test_an_order_to_another_keeper_is_void() -> None:
    stage = KeptStage()
    stage.see(ProcessOrderSeen(EngineId("a"), ProcessOrder(keeper="k0", wish=RUN), stage.next()))
    assert directs(stage.keep("a")) == []
    direct = only(Direct, stage.demand("a", 1))
    assert direct.revision == stage.revision - 1


def test_it_is_ordered_once() -> None:
    stage = KeptStage()
    stage.keep("a")
    direct = only(Direct, stage.demand("a", 1))
    assert directs(stage.demand("a", 2)) == []
    stage.obeyed(direct)
    assert directs(stage.demand("a", 3)) == []


def test_a_transaction_that_failed_is_tried_again_after_a_while() -> None:
    stage = KeptStage()
    stage.keep("a")
    direct = only(Direct, stage.demand("a", 1))
    assert directs(stage.hear(GrantRefused(direct.id, "etcd is away"))) == []
    assert directs(stage.demand("a", 2)) == []  # who comes meanwhile does not hurry it
    assert directs(stage.at(stage.now + 2.0)) == [(RUN, "a")]


def test_a_lost_answer_is_found_in_the_watch() -> None:
    stage = KeptStage()
    stage.keep("a")
    direct = only(Direct, stage.demand("a", 1))
    stage.ordered["a"] = stage.next()
    stage.see(ProcessOrderSeen(direct.engine, direct.order, stage.revision))
    assert directs(stage.life("a", Life.FAILED, error="no such file")) == []
    assert refusals(stage.demand("a", 2))
    assert directs(stage.hear(Granted(direct.id, stage.revision))) == []


def test_what_fits_runs_beside_and_what_does_not_waits_for_room() -> None:
    stage = running("a", "b")
    stage.keep("c")
    closed = only(Direct, stage.demand("c", 1))
    assert (closed.engine, closed.order.wish) == ("a", CLOSE)
    assert closed.decision.cause.startswith("host memory for c: requests for c have waited")
    assert {candidate.engine for candidate in closed.decision.candidates} == {"a", "b"}
    said = stage.obeyed(closed)
    assert routes(said) == {"a": []}
    assert orders(said) == [(Order.OFFLOAD, "a")]
    assert directs(stage.done(grants(said)[0])) == [(STOP, "a")]


def test_room_that_was_made_is_taken() -> None:
    stage = running("a", "b")
    stage.keep("c")
    offload = grants(stage.obeyed(only(Direct, stage.demand("c", 1))))[0]
    stage.obeyed(only(Direct, stage.done(offload)))
    said = stage.stopped("a")
    assert directs(said) == []
    assert refusals(said) == []
    assert directs(stage.ram(100, masters=80, unused=40)) == [(RUN, "c")]


def test_a_master_that_its_daemon_does_not_give_back_is_not_waited_for() -> None:
    stage = running("a", "b")
    stage.keep("c")
    offload = grants(stage.obeyed(only(Direct, stage.demand("c", 1))))[0]
    stage.obeyed(only(Direct, stage.done(offload)))
    stage.stopped("a")
    assert directs(stage.at(stage.now + 6.0)) == [(CLOSE, "b")]


def test_idle_ones_before_busy_ones() -> None:
    stage = running("a", "b")
    stage.load("a", running=1)
    stage.keep("c")
    assert directs(stage.demand("c", 1)) == [(CLOSE, "b")]


def test_a_busy_one_leaves_once_the_newcomer_has_waited_and_loses_nothing() -> None:
    stage = running("a", budget=60)
    stage.load("a", running=1)
    stage.keep("c")
    assert directs(stage.demand("c", 1)) == []
    closed = only(Direct, stage.at(stage.now + 40.0))
    assert (closed.engine, closed.order.wish) == ("a", CLOSE)
    said = stage.obeyed(closed)
    assert routes(said) == {"a": []}
    assert orders(said) == directs(said) == []
    assert orders(stage.demand("a", 3)) == []
    said = stage.load("a")
    assert orders(said) == [(Order.OFFLOAD, "a")]
    said = stage.done(grants(said)[0])
    assert (orders(said), directs(said)) == ([], [(STOP, "a")])
    stage.obeyed(only(Direct, said))
    assert orders(stage.load("a", waiting=1)) == []  # too late: it is being stopped


def test_a_closed_one_that_is_away_comes_back_for_what_it_holds() -> None:
    stage = running("a", "b", "d", budget=150)
    stage.keep("c")
    stage.see(stage.residency("a", Phase.OFFLOADED), stage.disown("n/0", "a"))
    stage.load("a", waiting=1)
    stage.see(ProcessOrderSeen(EngineId("a"), ProcessOrder(keeper=KEEPER, wish=CLOSE), stage.next()))
    assert (STOP, "a") not in directs(stage.said)
    assert (Order.RESTORE, "a") in orders(stage.said) or (Order.OFFLOAD, "b") in orders(stage.said)


def test_a_models_only_engine_comes_back_for_what_it_holds_though_it_was_closed_before() -> None:
    stage = running("a")
    stage.load("a", running=1)
    stage.see(ProcessOrderSeen(EngineId("a"), ProcessOrder(keeper=KEEPER, wish=CLOSE), stage.next()))
    assert orders(stage.said) == []
    said = stage.see(stage.residency("a", Phase.OFFLOADED), stage.disown("n/0", "a"))
    assert (orders(said), directs(said)) == ([(Order.RESTORE, "a")], [])


def test_pinned_ones_stay_and_that_is_the_reason() -> None:
    stage = running("a", "b")
    for engine in ("a", "b"):
        stage.policy(engine, Policy(pin=True))
    stage.keep("c")
    (refusal,) = refusals(stage.demand("c", 1))
    assert refusal.reason == ("c needs 50 B of n's host memory, which has 100 B; pinned a, b hold memory of it")


def test_what_is_larger_than_the_budget_is_refused_and_tried_when_that_changes() -> None:
    stage = KeptStage(budget=49)
    stage.keep("a")
    (refusal,) = refusals(stage.demand("a", 1))
    assert refusal.reason == "a needs 50 B of n's host memory, which has 49 B"
    assert stage.scheduler.view().models[0].refused == refusal.reason
    assert refusals(stage.demand("a", 1)) == []  # all who wait have heard it
    assert directs(stage.ram(50)) == [(RUN, "a")]
    assert stage.scheduler.view().models[0].refused == ""


def test_a_refusal_is_over_once_it_can_be_waited_for_and_said_again_when_it_cannot() -> None:
    stage = running("a", "b")
    for engine in ("a", "b"):
        stage.policy(engine, Policy(pin=True))
        stage.load(engine, running=1)
    stage.keep("c")
    (refusal,) = refusals(stage.demand("c", 1))
    assert directs(stage.policy("b", Policy())) == []  # it is busy
    assert next(model.refused for model in stage.scheduler.view().models if model.id == "c") == ""
    assert refusals(stage.policy("b", Policy(pin=True))) == [refusal]


def test_without_a_budget_all_may_run() -> None:
    stage = KeptStage(budget=0)
    for engine in ("a", "b", "c"):
        stage.keep(engine)
        assert directs(stage.demand(engine, 1)) == [(RUN, engine)]


def test_without_a_daemon_nothing_starts() -> None:
    stage = KeptStage()
    stage.keep("a")
    stage.see(DeviceSeen(DeviceId("n/0"), None, stage.next()))
    assert directs(stage.demand("a", 1)) == []
    assert directs(stage.see(stage.device("n/0"))) == [(RUN, "a")]


def test_those_that_wait_are_served_in_order() -> None:
    stage = running("a", budget=60)
    stage.load("a", running=1)
    stage.keep("c")
    stage.keep("d", size=5, weights=5)
    stage.demand("c", 1)
    stage.at(stage.now + 1.0)
    assert directs(stage.demand("d", 1)) == []  # its room is c's


def test_one_that_loads_is_charged_for_the_master_that_it_will_fill() -> None:
    stage = KeptStage(budget=80)
    stage.keep("a")
    stage.keep("b")
    stage.obeyed(only(Direct, stage.demand("a", 1)))
    stage.life("a", Life.STARTING)
    assert directs(stage.demand("b", 1)) == []


def test_room_that_is_being_made_is_not_made_twice() -> None:
    stage = running("a", "b")
    stage.keep("c")
    assert directs(stage.demand("c", 1)) == [(CLOSE, "a")]
    assert directs(stage.load("a", running=1)) == []  # before etcd has answered


def test_each_that_waits_has_room_made_for_it_alone() -> None:
    stage = running("a", "b")
    stage.keep("c")
    stage.keep("d")
    assert directs(stage.demand("c", 1)) == [(CLOSE, "a")]
    assert directs(stage.demand("d", 1)) == [(CLOSE, "b")]  # what a leaves is c's


def test_room_that_becomes_free_is_of_who_waits_longest() -> None:
    stage = running("a", "b")
    stage.keep("c")
    stage.keep("d")
    closed = [only(Direct, stage.demand(engine, 1)) for engine in ("c", "d")]
    offload = grants(stage.obeyed(closed[0]))[0]
    stage.obeyed(only(Direct, stage.done(offload)))
    stage.stopped("a")
    assert directs(stage.ram(100, masters=80, unused=40)) == [(RUN, "c")]


def test_stop_after() -> None:
    stage = running("a", stop_after=200.0)
    assert directs(stage.at(stage.now + 50.0)) == []
    closed = only(Direct, stage.at(stage.now + 60.0))
    assert (closed.order.wish, closed.decision.cause) == (CLOSE, "idle for 200.0 s, stopped after 200 s")
    said = stage.obeyed(closed)
    assert directs(stage.done(grants(said)[0])) == [(STOP, "a")]


def test_stop_after_counts_from_the_last_work() -> None:
    stage = running("a", stop_after=200.0)
    stage.load("a", running=1)
    stage.load("a")
    assert directs(stage.at(stage.now + 150.0)) == []
    assert directs(stage.at(stage.now + 60.0)) == [(CLOSE, "a")]


def test_a_pinned_one_is_never_stopped() -> None:
    stage = running("a", stop_after=200.0)
    stage.policy("a", Policy(pin=True))
    assert directs(stage.at(stage.now + 1000.0)) == []


def test_one_that_cannot_be_started_is_refused_with_the_reason_and_tried_again() -> None:
    stage = KeptStage()
    stage.keep("a")
    stage.obeyed(only(Direct, stage.demand("a", 1)))
    stage.life("a", Life.STARTING)
    (refusal,) = refusals(stage.life("a", Life.FAILED, error="ended with status 1"))
    assert refusal.reason == "a could not be started: ended with status 1"
    assert 0 < refusal.retry_after_s <= 60
    stage.demand("a", 0)
    assert directs(stage.at(stage.now + 61.0)) == []
    assert directs(stage.demand("a", 1)) == [(RUN, "a")]


def test_of_several_places_the_emptier_device_is_taken() -> None:
    stage = KeptStage("n/0", "n/1")
    stage.engine("other", Phase.RESIDENT, weights=30)
    stage.keep("a@0", "n/0", model="a")
    stage.keep("a@1", "n/1", model="a")
    assert directs(stage.demand("a", 1)) == [(RUN, "a@1")]


def test_one_process_for_a_model_is_enough() -> None:
    stage = KeptStage("n/0", "n/1")
    stage.keep("a@0", "n/0", model="a")
    stage.keep("a@1", "n/1", model="a")
    stage.obeyed(only(Direct, stage.demand("a", 1)))
    assert directs(stage.demand("a", 5)) == []


def replicas(stage: KeptStage, count: int, **kept: object) -> KeptStage:
    for number in range(count):
        stage.keep(f"a@{number}", f"n/{number}", model="a", together=True, **kept)  # type: ignore[arg-type]
    return stage


def test_replicas_are_started_together() -> None:
    stage = replicas(KeptStage("n/0", "n/1", "n/2", budget=200), 3)
    found = stage.demand("a", 1)
    assert sorted(directs(found)) == [(RUN, "a@0"), (RUN, "a@1"), (RUN, "a@2")]
    for direct in of(Direct, found):
        stage.obeyed(direct)
    assert directs(stage.demand("a", 5)) == []


def test_replicas_are_started_as_far_as_there_is_room_and_nobody_leaves_for_more_than_one() -> None:
    stage = replicas(KeptStage("n/0", "n/1", budget=100), 2, size=50, weights=10)
    assert [wish for wish, _ in directs(stage.demand("a", 1))] == [RUN]
    stage = running("x", "y")
    for number in range(2):
        stage.keep(f"a@{number}", "n/0", model="a", together=True)
    assert [wish for wish, _ in directs(stage.demand("a", 1))] == [CLOSE]


def test_who_waits_for_a_first_engine_comes_before_a_second_of_another() -> None:
    stage = replicas(KeptStage("n/0", "n/1", budget=130), 2, size=50, weights=10)
    stage.keep("b", "n/0", size=50, weights=10)
    stage.ram(130, masters=120)
    assert directs(stage.demand("a", 1)) == directs(stage.demand("b", 1)) == []
    assert sorted(directs(stage.ram(130, masters=0))) == [(RUN, "a@0"), (RUN, "b")]


def test_a_replica_that_was_stopped_comes_back_when_none_is_left() -> None:
    stage = replicas(KeptStage("n/0", "n/1", budget=200), 2)
    for direct in of(Direct, stage.demand("a", 1)):
        stage.obeyed(direct)
    for engine in ("a@0", "a@1"):
        stage.run(engine)
    stage.demand("a", 0)
    gone = ProcessOrder(keeper=KEEPER, wish=STOP)
    stage.see(ProcessOrderSeen(EngineId("a@1"), gone, stage.next()))
    stage.stopped("a@1")
    assert directs(stage.demand("a", 1)) == []
    stage.demand("a", 0)
    stage.see(ProcessOrderSeen(EngineId("a@0"), gone, stage.next()))
    stage.stopped("a@0")
    assert sorted(directs(stage.demand("a", 1))) == [(RUN, "a@0"), (RUN, "a@1")]


def one_of_two_ordered() -> tuple[KeptStage, Direct]:
    """`a@0` runs; the order for the other failed."""
    stage = replicas(KeptStage("n/0", "n/1", budget=200), 2)
    first, second = of(Direct, stage.demand("a", 1))
    stage.obeyed(first)
    stage.run("a@0")
    stage.demand("a", 0)
    assert directs(stage.hear(GrantRefused(second.id, "etcd is away"))) == []
    return stage, second


def again(stage: KeptStage) -> list[Direct]:
    """What is ordered next, if anything is within a few deadlines."""
    for _ in range(3):
        due = stage.scheduler.deadline()
        if due is not None and (found := of(Direct, stage.at(due))):
            return found
    return []


def test_a_replica_whose_order_failed_is_ordered_again_ever_later_and_not_for_ever() -> None:
    stage, second = one_of_two_ordered()
    at, waits = stage.now, []
    while found := again(stage):
        assert directs(found) == [(RUN, second.engine)]  # type: ignore[arg-type]
        waits.append(stage.now - at)
        stage.load("a@0", running=len(waits))  # what happens meanwhile does not hurry it
        at = stage.now
        stage.hear(GrantRefused(found[0].id, "etcd is away"))
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]


def test_a_replica_that_rests_may_be_ordered_for_those_who_wait() -> None:
    """What grows is the rest before it is ordered of itself."""
    stage, second = one_of_two_ordered()
    limits = Limits(retry_s=1.0)
    starts = Starts(Orders(limits, 1), limits)
    starts.owe(second.engine)
    for _ in range(4):
        starts.failed(second, stage.now)
    assert starts.blocked(second.engine, stage.now + 0.9)
    assert not starts.blocked(second.engine, stage.now + 1.0)
    assert starts.again_at(second.engine) == stage.now + 8.0


def test_a_replica_whose_supervisor_went_is_not_owed_to_the_next() -> None:
    """It comes with its model's next start, as all that the next supervisor keeps."""
    stage, second = one_of_two_ordered()
    node = stage.scheduler._ledger.processes.entries[second.engine].node
    stage.see(ProcessSeen(node, second.engine, None, stage.next()))
    assert not stage.scheduler._starts.owed(second.engine)
    stage.keep("a@1", model="a", together=True)
    assert again(stage) == []


def test_a_replica_of_a_drained_model_is_not_ordered_again() -> None:
    stage, _ = one_of_two_ordered()
    stage.policy("a", Policy(drained=True))
    assert again(stage) == []


def test_a_replica_that_was_ordered_at_last_is_left_alone() -> None:
    stage, second = one_of_two_ordered()
    (direct,) = again(stage)
    assert (direct.engine, direct.decision.wanted) == (second.engine, "a")
    stage.obeyed(direct)
    stage.run("a@1")
    stage.see(ProcessOrderSeen(EngineId("a@1"), ProcessOrder(keeper=KEEPER, wish=STOP), stage.next()))
    stage.stopped("a@1")
    assert directs(stage.at(stage.now + 300.0)) == []


def test_a_replica_is_not_ordered_again_when_nothing_of_its_model_runs_or_there_is_no_room() -> None:
    stage, _ = one_of_two_ordered()
    stage.see(ProcessOrderSeen(EngineId("a@0"), ProcessOrder(keeper=KEEPER, wish=STOP), stage.next()))
    stage.stopped("a@0")
    assert directs(stage.at(stage.now + 300.0)) == []
    stage, _ = one_of_two_ordered()
    stage.ram(200, masters=199)
    assert directs(stage.at(stage.now + 300.0)) == []


def test_a_closed_engine_holds_no_other_of_its_model_back() -> None:
    stage = KeptStage("n/0", "n/1", budget=200)
    stage.keep("a@0", "n/0", model="a")
    stage.keep("a@1", "n/1", model="a")
    stage.obeyed(only(Direct, stage.demand("a", 1)))
    stage.run("a@0")
    stage.load("a@0", running=1)
    order = ProcessOrder(keeper=KEEPER, wish=CLOSE)
    second = only(Direct, stage.see(ProcessOrderSeen(EngineId("a@0"), order, stage.next())))
    assert (second.engine, second.order.wish) == ("a@1", RUN)
    stage.obeyed(second)
    stage.life("a@1", Life.STARTING)
    said = stage.engine("a@1", model="a", devices=("n/1",))
    assert orders(said) == [(Order.RESTORE, "a@1")]


def test_a_closed_engine_is_not_woken_for_what_another_may_take() -> None:
    stage = KeptStage("n/0", "n/1", budget=200)
    for engine, device in (("a@0", "n/0"), ("a@1", "n/1")):
        stage.keep(engine, device, model="a")
        stage.see(ProcessOrderSeen(EngineId(engine), ProcessOrder(keeper=KEEPER, wish=RUN), stage.next()))
        stage.run(engine)
        stage.see(stage.residency(engine, Phase.OFFLOADED), stage.disown(device, engine))
    stage.load("a@0", waiting=1)  # it is away with a request inside, so it is not stopped yet
    stage.said.clear()
    stage.see(ProcessOrderSeen(EngineId("a@0"), ProcessOrder(keeper=KEEPER, wish=CLOSE), stage.next()))
    stage.demand("a", 1)
    assert (Order.RESTORE, "a@1") in orders(stage.said)


def test_a_drained_model_is_not_started() -> None:
    stage = KeptStage()
    stage.keep("a")
    stage.policy("a", Policy(drained=True))
    assert directs(stage.demand("a", 1)) == []


def test_a_standby_orders_nothing_and_routes_no_closed_one() -> None:
    stage = KeptStage(lead=False)
    stage.keep("a")
    assert directs(stage.demand("a", 1)) == []
    stage.see(ProcessOrderSeen(EngineId("a"), ProcessOrder(keeper=KEEPER, wish=RUN), stage.next()))
    assert routes(stage.run("a"))["a"] == ["a"]
    order = ProcessOrder(keeper=KEEPER, wish=CLOSE)
    assert routes(stage.see(ProcessOrderSeen(EngineId("a"), order, stage.next()))) == {"a": []}


def test_a_supervisor_that_is_gone_leaves_its_engines_as_they_are() -> None:
    stage = running("a")
    stage.see(ProcessSeen("n", EngineId("a"), None, stage.next()))
    assert stage.scheduler.view().models[0].endpoints
    assert of(Direct, stage.at(stage.now + 1000.0)) == []


def test_saved_kv_and_masters_in_use_are_charged() -> None:
    stage = KeptStage(budget=100)
    stage.ram(100, masters=30, saved_kv=30, unused=0)
    stage.keep("a")
    assert "which has 100 B" in refusals(stage.demand("a", 1))[0].reason
    assert directs(stage.ram(100, masters=30, saved_kv=30, unused=20)) == [(RUN, "a")]
