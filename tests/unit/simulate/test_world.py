"""The real scheduler in virtual time: what it costs, and that everything is answered."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from coordinator.core.model import EngineId, Order
from coordinator.core.policies.registry import POLICIES, make
from coordinator.simulate.fleet import Device, Duration, Fleet, Model, Size
from coordinator.simulate.generate import FAMILIES, workload
from coordinator.simulate.plot import draw
from coordinator.simulate.report import best_order, compare
from coordinator.simulate.trace import Request
from coordinator.simulate.world import World

GB = 10**9


def fleet(*sizes: int, capacity: int = 10, **settings: object) -> Fleet:
    device = Device("n/0", Size(capacity * GB), restore=Size(GB), offload=Size(GB))
    models = {
        chr(97 + n): Model(
            weights=Size(size * GB), devices=["n/0"], fixed=Duration(0), decode=Duration(0.01), **settings
        )  # type: ignore[arg-type]
        for n, size in enumerate(sizes)
    }
    return Fleet([device], models)


def ran(of: Fleet, *requests: tuple[float, str], policy: str = "lru", predict: bool = False) -> World:
    world = World(of, [Request(t, model) for t, model in requests], make(policy), predict=predict)
    world.run()
    return world


def moves(world: World) -> list[tuple[Order, str]]:
    return [(move.order, move.model) for move in world.moves]


def test_a_cold_request_waits_for_its_bytes_and_a_warm_one_does_not() -> None:
    world = ran(fleet(4, 4), (1.0, "a"), (20.0, "a"))
    cold, warm = world.jobs
    assert (cold.cold, warm.cold) == (True, False)
    assert cold.ttft == pytest.approx(4.0, abs=0.1)
    assert warm.ttft == pytest.approx(0.03, abs=0.02)
    assert moves(world) == [(Order.RESTORE, "a")]


def test_what_was_measured_of_a_request_and_of_leaving_is_added() -> None:
    measured = fleet(4, 7, first=Duration(0.5), leave=Duration(2), kv=Size(2 * GB), saved=Size(GB))
    _, warm, after = ran(measured, (1.0, "a"), (20.0, "a"), (40.0, "b")).jobs
    assert warm.ttft == pytest.approx(0.5 + warm.request.prompt_tokens / 8000, abs=0.01)
    assert after.ttft == pytest.approx((2 + 1) + (7 + 1) + 0.5, abs=0.2)


def test_pages_that_nobody_needed_are_not_copied_again() -> None:
    requests = [Request(t, model) for t, model in ((1.0, "a"), (20.0, "b"), (40.0, "a"), (60.0, "c"), (80.0, "a"))]
    world = World(fleet(6, 3, 8), requests, make("lru"), remains=True)
    world.run()
    restores = [(move.model, round(move.bytes / GB, 1)) for move in world.moves if move.order is Order.RESTORE]
    assert restores == [("a", 6), ("b", 3), ("c", 8), ("a", 4)]
    learned = world._scheduler._costs._measured[EngineId("a"), Order.RESTORE]
    assert (learned.seconds, learned.bytes) == (pytest.approx(4.0, abs=0.1), pytest.approx(4 * GB, rel=0.02))


def test_a_switch_and_its_figures() -> None:
    of = fleet(8, 8)
    world = ran(of, (0.0, "a"), (20.0, "b"), (40.0, "a"))
    found = compare(of, [("lru", world)])
    assert moves(world) == [
        (Order.RESTORE, "a"), (Order.OFFLOAD, "a"), (Order.RESTORE, "b"), (Order.OFFLOAD, "b"), (Order.RESTORE, "a"),
    ]  # fmt: skip
    (outcome,) = found.outcomes
    assert outcome.cost_s == pytest.approx(24.0, abs=0.1)
    assert outcome.ratio == pytest.approx(1.0, abs=0.01)
    assert (outcome.restores, outcome.hit_rate, outcome.unanswered, outcome.thrash) == (3, 0.0, 0, 1)
    assert outcome.max_wait_s == pytest.approx(8.1, abs=0.1)


def test_a_queue_that_alternates_is_served_in_batches() -> None:
    """A B A B A B within a moment: one switch, not five."""
    world = ran(fleet(8, 8, min_residency=Duration(2)), *((0.1 * n, "ab"[n % 2]) for n in range(10)))
    assert [order for order, _ in moves(world)].count(Order.RESTORE) == 2
    assert world.served == ["a"] * 5 + ["b"] * 5


def test_the_optimum_may_serve_in_the_cheapest_order_seen() -> None:
    of = fleet(8, 8, min_residency=Duration(2))
    world = ran(of, *((0.1 * n, "ab"[n % 2]) for n in range(10)))
    assert best_order(of, [world]).seconds == pytest.approx(16.0, abs=0.1)
    assert compare(of, [("lru", world)]).outcomes[0].ratio >= 1.0


def test_a_running_answer_is_frozen_and_goes_on() -> None:
    of = fleet(8, 8, min_residency=Duration(1))
    requests = [Request(0.0, "a", 10, 1000), Request(9.0, "b", 10, 10)]
    world = World(of, requests, make("lru"))
    world.run()
    a, b = world.jobs
    assert b.ended is not None
    assert a.ended is not None
    assert a.ended > b.ended > 17.0
    assert a.ended == pytest.approx(8 + 10.0 + 2 * 8 + 1, abs=2.0)


def test_what_cannot_be_served_is_refused() -> None:
    of = fleet(8, 8)
    of.models["a"] = Model(weights=Size(8 * GB), devices=["n/0"], pin=True)
    world = ran(of, (0.0, "a"), (20.0, "b"))
    assert "pinned a hold" in world.jobs[1].refused
    assert compare(of, [("lru", world)]).outcomes[0].unanswered == 1


def test_a_model_over_two_devices_takes_room_on_both() -> None:
    devices = [Device(id_, Size(10 * GB), restore=Size(GB)) for id_ in ("n/0", "n/1")]
    models = {
        "one": Model(weights=Size(6 * GB), devices=["n/0"]),
        "group": Model(weights=Size(6 * GB), devices=["n/0", "n/1"]),
    }
    of = Fleet(devices, models)
    world = ran(of, (0.0, "one"), (20.0, "group"), (40.0, "one"))
    assert all(job.ended for job in world.jobs)
    assert compare(of, [("lru", world)]).outcomes[0].ratio == pytest.approx(1.0, abs=0.01)


def test_a_predicted_restore_that_somebody_waits_behind_is_paid_for() -> None:
    """`a` had to leave for `b`, `b` for `c`, which leaves room for `a`; `d` comes while `a` is on its way back."""
    of = fleet(2, 9, 6, 3)
    uses = [(40.0 * n, "ab"[n % 2]) for n in range(6)]
    world = ran(of, *uses, (230.0, "c"), (237.0, "d"), predict=True)
    (predicted,) = (move for move in world.moves if move.predicted)
    assert (predicted.model, world.predicted) == ("a", 1)
    assert predicted.waited == pytest.approx(1.0, abs=0.1)
    quiet = ran(of, *uses, (230.0, "c"), (245.0, "a"), predict=True)
    assert [move.waited for move in quiet.moves if move.predicted] == [0.0]
    assert not quiet.jobs[-1].cold


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_answered_and_no_policy_undercuts_the_optimum(family: str, policy: str) -> None:
    work = workload(family, 1, requests=60)
    world = World(work.fleet, work.requests, make(policy))
    world.run()
    (outcome,) = compare(work.fleet, [(policy, world)]).outcomes
    assert outcome.unanswered == 0
    assert outcome.ratio >= 1.0
    assert outcome.restores == len([m for m in world.moves if m.order is Order.RESTORE])


def test_a_run_is_the_same_every_time() -> None:
    work = workload("bursts", 5, requests=80)
    stories = []
    for _ in range(2):
        world = World(work.fleet, work.requests, make("cost_aware"), predict=True)
        world.run()
        stories.append((world.moves, world.decisions, [job.ttft for job in world.jobs]))
    assert stories[0] == stories[1]


def test_the_picture_is_xml_and_names_the_policies() -> None:
    work = workload("tail", 1, requests=40)
    runs = []
    for name in ("lru", "cost_aware"):
        world = World(work.fleet, work.requests, make(name))
        world.run()
        runs.append((name, world))
    picture = draw(compare(work.fleet, runs), {name: world.jobs for name, world in runs})
    root = ET.fromstring(picture)
    assert root.tag.endswith("svg")
    assert {"lru", "cost_aware", "optimum"} <= {text.text for text in root.iter() if text.text}
