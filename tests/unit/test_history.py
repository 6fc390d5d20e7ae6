"""What a coordinator remembers of switches and memory, fed with the events of one."""

from __future__ import annotations

import pytest

from coordinator.core.commands import Grant, SeatAt
from coordinator.core.events import (
    Changed,
    DemandSeen,
    DeviceSeen,
    Granted,
    GrantRefused,
    Listed,
    ResidencySeen,
    SpecSeen,
)
from coordinator.core.model import (
    Bytes,
    Decision,
    Demand,
    Device,
    DeviceId,
    EngineId,
    Fence,
    Holder,
    ModelId,
    Order,
    Owner,
    Phase,
    Residency,
    Spec,
    Step,
)
from coordinator.history import History, Sample, Switch

D = DeviceId("local/0")


def holder(engine: str) -> Holder:
    return Holder(engine, "1")


def spec(engine: str) -> SpecSeen:
    value = Spec(
        holder=holder(engine),
        model=f"m-{engine}",
        url="",
        devices=(D,),
        pid=1,
        boot_id="b",
        footprint=Bytes(weights=60),
    )
    return SpecSeen(EngineId(engine), value, 1, 1)


def device(*owners: tuple[str, int]) -> DeviceSeen:
    held = tuple(Owner(holder(engine), Bytes(weights=size)) for engine, size in owners)
    return DeviceSeen(D, Device(driver="host", capacity=100, chunk=1, epoch="x", owners=held), 2)


def grant(order: Order, engine: str, wanted: str = "", id_: int = 1) -> Grant:
    decision = Decision(n=id_, at=0, order=order, engine=engine, devices=(D,), cause="x", wanted=wanted)
    return Grant(id_, order, holder(engine), 1, 1, "x", "k", 1, (SeatAt(D, 1),), 60, 60.0, decision)


class Story:
    """A history with engines a and b, and a clock."""

    def __init__(self) -> None:
        self.history = History(lambda: 1.7e9)
        self.history.saw(Listed((spec("a"), spec("b"), device(("a", 60))), 1), 0.0)

    def order(self, order: Order, engine: str, at: float, granted: float, revision: int, wanted: str = "") -> None:
        command = grant(order, engine, wanted)
        self.history.ordered(command, at)
        self.history.decided(command, Granted(1, revision), granted)

    def says(self, engine: str, phase: Phase, revision: int, at: float, **more: object) -> list[Switch | Sample]:
        value = Residency(holder=holder(engine), phase=phase, fence=Fence("x", revision), **more)  # type: ignore[arg-type]
        return self.history.saw(Changed((ResidencySeen(EngineId(engine), value, revision),), revision), at)


def test_a_wake_is_told_from_the_first_request_to_the_answer_part_by_part() -> None:
    story = Story()
    story.says("b", Phase.OFFLOADED, 1, 0.0)
    story.history.saw(DemandSeen("gw", ModelId("m-b"), Demand(waiting=1)), 1.0)
    story.order(Order.OFFLOAD, "a", 1.5, 1.6, 5, wanted="m-b")
    [left] = story.says("a", Phase.OFFLOADED, 5, 2.0, steps=(Step("drain", 0.3),), kv_saved=7)
    story.order(Order.RESTORE, "b", 3.0, 3.25, 6)
    assert story.says("b", Phase.RESTORING, 6, 3.3, busy=True) == []
    steps = (Step("enter", 0.1), Step("copy", 0.2), Step("kv", 0.3), Step("resume", 0.4), Step("novel", 0.5))
    [came] = story.says("b", Phase.RESIDENT, 6, 5.25, steps=steps, restored=60)
    assert isinstance(left, Switch)
    assert (left.order, left.model, left.bytes, left.path) == (Order.OFFLOAD, "m-a", 7, "")
    assert isinstance(came, Switch)
    assert (came.order, came.path, came.seconds, came.waited, came.bytes) == (Order.RESTORE, "warm", 2.0, 2.0, 60)
    assert {step.name: pytest.approx(step.seconds) for step in came.phases} == {
        "queue": 0.5, "evict": 1.5, "decision": 0.25, "enter": 0.1, "copy": 0.5, "warmup": 0.4, "other": 0.5,
    }  # fmt: skip
    assert list(story.history.switches) == [left, came]
    assert story.says("b", Phase.RESIDENT, 6, 9.0, restored=60) == []  # told again


@pytest.mark.parametrize(
    ("before", "restored", "path"),
    [
        (Phase.STARTING, 0, "cold"),
        (Phase.STARTING, 60, "cold"),
        (Phase.OFFLOADED, 60, "warm"),
        (Phase.OFFLOADED, 0, "hot"),
        (Phase.OFFLOADED, 59, "hot"),  # a part was still there
    ],
)
def test_the_path_says_where_the_weights_came_from(before: Phase, restored: int, path: str) -> None:
    story = Story()
    story.says("b", before, 1, 0.0)
    story.order(Order.RESTORE, "b", 1.0, 1.0, 6)
    held = Bytes(weights=60)
    [came] = story.says("b", Phase.RESIDENT, 6, 2.0, restored=restored, held=held)
    assert isinstance(came, Switch)
    assert came.path == path


def test_a_wake_into_pages_that_another_holds_is_hot_whatever_kv_came_back() -> None:
    story = Story()
    story.says("b", Phase.OFFLOADED, 1, 0.0)
    story.order(Order.RESTORE, "b", 1.0, 1.0, 6)
    [came] = story.says("b", Phase.RESIDENT, 6, 2.0, restored=4, held=Bytes(kv=8))
    assert isinstance(came, Switch)
    assert came.path == "hot"


def test_a_restore_that_failed_is_no_wake_and_a_refused_order_is_forgotten() -> None:
    story = Story()
    story.order(Order.RESTORE, "b", 1.0, 1.0, 6)
    [failed] = story.says("b", Phase.OFFLOADED, 6, 2.0, error="no pages")
    assert isinstance(failed, Switch)
    assert (failed.path, failed.error) == ("", "no pages")
    command = grant(Order.RESTORE, "b")
    story.history.ordered(command, 3.0)
    story.history.decided(command, GrantRefused(1, "the world moved on"), 3.1)
    assert story.says("b", Phase.RESIDENT, 0, 4.0) == []


def test_who_waits_at_one_gateway_is_not_forgotten_when_another_has_nobody() -> None:
    story = Story()
    for gateway, waiting, at in (("g1", 1, 1.0), ("g2", 1, 2.0), ("g2", 0, 3.0)):
        story.history.saw(DemandSeen(gateway, ModelId("m-b"), Demand(waiting=waiting)), at)
    story.order(Order.RESTORE, "b", 5.0, 5.0, 6)
    [came] = story.says("b", Phase.RESIDENT, 6, 6.0)
    assert isinstance(came, Switch)
    assert came.waited == 4.0


def test_memory_is_noted_when_it_changes_and_only_then() -> None:
    story = Story()
    [first] = story.history.samples
    assert (first.device, first.capacity, first.kinds, first.models) == (D, 100, Bytes(weights=60), {"m-a": 60})
    assert story.history.saw(Changed((device(("a", 60)),), 3), 1.0) == []
    [second] = story.history.saw(Changed((device(("b", 40), ("gone", 2)),), 4), 2.0)
    assert isinstance(second, Sample)
    assert second.models == {"m-b": 40, "gone": 2}
