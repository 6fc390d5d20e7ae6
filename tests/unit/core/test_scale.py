"""An event costs what it touches, however large the fleet: counted in calls, not in time."""

from __future__ import annotations

import sys
from types import FrameType

import pytest

from coordinator.core.events import (
    Changed,
    DemandSeen,
    DeviceSeen,
    EpochSeen,
    Event,
    Fact,
    Granted,
    LeadershipGained,
    Listed,
    LoadSeen,
    ResidencySeen,
    SpecSeen,
    Tick,
)
from coordinator.core.model import (
    Bytes,
    Demand,
    Device,
    Epoch,
    Holder,
    Load,
    Owner,
    Phase,
    Residency,
    Spec,
)
from coordinator.core.scheduler import Scheduler
from coordinator.core.settings import Settings

PER_DEVICE = 10
FOOTPRINT = Bytes(weights=45)


def fleet(engines: int) -> tuple[Scheduler, int]:
    """Ten engines on each device, two of them resident."""
    scheduler = Scheduler(Settings(keep_alive=300.0, min_residency=0.0))
    facts: list[Fact] = [EpochSeen(Epoch(id="e"), 1)]
    revision = 1
    for number in range(engines):
        device, engine = f"n/{number // PER_DEVICE}", f"m{number}"
        holder = Holder(engine, "n1")
        resident = number % PER_DEVICE < 2
        if number % PER_DEVICE == 0:
            owners = tuple(Owner(Holder(f"m{number + k}", "n1"), FOOTPRINT) for k in range(2))
            state = Device(driver="host", capacity=100, chunk=1, epoch="e", owners=owners)
            facts.append(DeviceSeen(device, state, 2))  # type: ignore[arg-type]
        spec = Spec(
            holder=holder, model=engine, url="u", devices=(device,), pid=1, boot_id="b", footprint=FOOTPRINT
        )  # fmt: skip
        phase = Phase.RESIDENT if resident else Phase.OFFLOADED
        revision += 1
        facts.append(SpecSeen(engine, spec, revision, 1000 + number))  # type: ignore[arg-type]
        facts.append(ResidencySeen(engine, Residency(holder=holder, phase=phase), revision))  # type: ignore[arg-type]
    scheduler.handle(Listed(tuple(facts), revision), 0.0)
    scheduler.handle(LeadershipGained("k", 5), 1.0)
    return scheduler, revision


def calls(scheduler: Scheduler, events: list[tuple[Event, float]]) -> list[int]:
    """Calls of Python functions and built-ins for each event."""
    counts = []
    for event, now in events:
        count = 0

        def profile(frame: FrameType, what: str, arg: object) -> None:
            nonlocal count
            count += what in ("call", "c_call")

        sys.setprofile(profile)
        try:
            scheduler.handle(event, now)
        finally:
            sys.setprofile(None)
        counts.append(count)
    return counts


def day(revision: int) -> list[tuple[Event, float]]:
    """Demand, load, a switch in all its steps, a tick: all about engines 0 and 5."""
    holder = Holder("m0", "n1")
    left = (Owner(Holder("m1", "n1"), FOOTPRINT),)
    state = Device(driver="host", capacity=100, chunk=1, epoch="e", closed=revision + 2, owners=left)
    away = Residency(holder=holder, phase=Phase.OFFLOADED)
    return [
        (Changed((LoadSeen("m0", Load(running=1), revision + 1),), revision + 1), 2.0),  # type: ignore[arg-type]
        (Changed((LoadSeen("m0", Load(), revision + 1),), revision + 1), 3.0),  # type: ignore[arg-type]
        (DemandSeen("g", "m5", Demand(waiting=1)), 4.0),  # type: ignore[arg-type]
        (Granted(1, revision + 2), 5.0),
        (Changed((DeviceSeen("n/0", state, revision + 3),), revision + 3), 6.0),  # type: ignore[arg-type]
        (Changed((ResidencySeen("m0", away, revision + 4),), revision + 4), 7.0),  # type: ignore[arg-type]
        (Granted(2, revision + 5), 8.0),
        (DemandSeen("g", "m5", None), 9.0),  # type: ignore[arg-type]
        (Tick(), 10.0),
    ]


@pytest.mark.timeout(120)
def test_decisions_cost_the_same_at_ten_thousand_engines() -> None:
    small, large = fleet(10), fleet(3000)
    few, many = calls(small[0], day(small[1])), calls(large[0], day(large[1]))
    assert sum(few) > 500
    assert [count <= 1.1 * base + 10 for base, count in zip(few, many, strict=True)] == [True] * len(few), (few, many)


def test_many_sleepers_on_one_device_cost_nothing() -> None:
    def crowded(count: int) -> tuple[Scheduler, int]:
        scheduler = Scheduler(Settings(keep_alive=None, min_residency=0.0))
        state = Device(driver="host", capacity=100, chunk=1, epoch="e")
        facts: list[Fact] = [EpochSeen(Epoch(id="e"), 1), DeviceSeen("n/0", state, 2)]  # type: ignore[arg-type]
        for number in range(count):
            holder = Holder(f"m{number}", "n1")
            spec = Spec(
                holder=holder, model=holder.engine, url="u", devices=("n/0",), pid=1, boot_id="b", footprint=FOOTPRINT
            )
            said = Residency(holder=holder, phase=Phase.OFFLOADED)
            facts += [SpecSeen(holder.engine, spec, 3, 9), ResidencySeen(holder.engine, said, 3)]  # type: ignore[arg-type]
        scheduler.handle(Listed(tuple(facts), 3), 0.0)
        scheduler.handle(LeadershipGained("k", 5), 1.0)
        return scheduler, 3

    demand = [(DemandSeen("g", "m5", Demand(waiting=1)), 4.0)]  # type: ignore[arg-type]
    few, many = calls(crowded(10)[0], demand), calls(crowded(2000)[0], demand)  # type: ignore[arg-type]
    assert many[0] <= 1.1 * few[0] + 10, (few, many)
