"""Histories of the whole system in virtual time, one for each seed, with every fault there is: invariants after every
step, liveness at the end. A failure names its seed; `SEEDS` and `FIRST_SEED` in the environment run others."""

from __future__ import annotations

import os

import pytest

from coordinator.core.entries import DeviceEntry, EngineEntry
from coordinator.core.ledger import Ledger
from coordinator.core.model import Bytes, DeviceId, Order, Phase, Policy
from coordinator.core.round import Round
from coordinator.core.settings import Settings
from tests.helpers.sim.daemon import Violated
from tests.helpers.sim.engine import Kind
from tests.helpers.sim.scenario import fleet, history, live
from tests.helpers.sim.world import LIMITS, World

FIRST_SEED = int(os.environ.get("FIRST_SEED", "0"))
SEEDS = int(os.environ.get("SEEDS", "20"))
TRIO = tuple(Kind(model, ("n/0",), Bytes(weights=40, kv=8)) for model in ("a", "b", "c"))
LEAST = 1.0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
def test_with_faults(seed: int) -> None:
    history(seed)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + max(1, SEEDS // 4)))
def test_without_faults(seed: int) -> None:
    history(seed, faults=False)


def test_a_seed_is_a_history() -> None:
    """The same seed gives the same story, word for word."""
    stories = []
    for _ in range(2):
        world = fleet(7)
        live(world, 20.0, faults=True)
        stories.append(world.story)
    assert stories[0] == stories[1]
    assert len(stories[0]) > 5


def trio(**models: Settings) -> World:
    """Three models, a device for two; all started."""
    world = World(1, {"n/0": 100}, TRIO, models=models, settings=Settings(keep_alive=None, min_residency=LEAST))
    world.run(20.0)
    assert all(engine.phase in (Phase.RESIDENT, Phase.OFFLOADED) for engine in world.engines.values())
    return world


def asleep(world: World) -> str:
    return next(model for model, engine in world.engines.items() if engine.phase is Phase.OFFLOADED)


def test_two_hundred_requests_to_one_sleeper_are_one_restore() -> None:
    world = trio()
    model = asleep(world)
    before = len(world.story)
    requests = [world.request(model, 0.1, gateway) for gateway in range(200)]
    world.run(10.0)
    assert {request.ended for request in requests} == {"served"}
    granted = [line.split()[1:3] for line in world.story[before:]]
    assert [line for line in granted if line[0] == "restore"] == [["restore", model]]
    assert len(granted) == 2


def test_requests_in_flight_survive_a_switch() -> None:
    world = trio()
    long = [world.request(model, 8.0) for model in world.engines]
    world.run(120.0)
    assert [request.ended for request in long] == ["served"] * 3


def test_a_hot_pair_does_not_starve_a_third() -> None:
    """Every request begins within the bound that `Scheduler` states."""
    world = trio()
    for _ in range(200):
        for model in ("a", "b", "c"):
            world.request(model, 0.5)
        world.run(0.3)
    world.run(60.0)
    operations = 3 * 0.2 + 0.3 + 1.0
    bound = 3 * (LEAST + operations)
    waits = [(request.begun_at or 1e9) - request.born for request in world.requests]
    assert max(waits) <= bound, max(waits)


def test_one_that_hangs_with_free_memory_is_left_alone_and_comes_back() -> None:
    world = World(2, {"n/0": 200}, TRIO, settings=Settings(keep_alive=None, min_residency=LEAST))
    world.run(20.0)
    world.hang(world.engines["a"], 30.0)
    world.run(60.0)
    assert world.engines["a"].alive
    assert world.request("a").ended == ""
    world.run(5.0)
    assert world.requests[-1].ended == "served"


def test_one_that_hangs_under_pressure_is_killed_and_others_are_served() -> None:
    world = trio()
    waiting = asleep(world)
    victim, other = sorted(model for model in world.engines if model != waiting)
    world.policy(other, Policy(pin=True))
    frozen = world.engines[victim]
    world.hang(frozen, 500.0)
    world.run(30.0)
    assert frozen.alive
    request = world.request(waiting)
    world.run(LIMITS.lost_s + 10.0)
    assert (request.ended, frozen.alive) == ("served", False)


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.DRAINING, Phase.RESIDENT, Phase.OFFLOADED, Phase.RESTORING])
def test_kill_at_every_phase(phase: Phase) -> None:
    """Whoever dies, in whatever phase, the others go on and it comes back (F1)."""
    world = trio()
    turns = 0
    while turns < 400:
        world.request("abc"[turns % 3], 0.2)
        world.run(0.05)
        found = [e for e in world.engines.values() if e.phase is phase or (phase is Phase.RESTORING and e.working)]
        if phase is Phase.STARTING and turns == 10:
            world.crash(world.engines["a"])
        elif found:
            world.crash(found[0])
            break
        turns += 1
    assert turns < 400
    world.run(90.0)
    requests = [world.request(model) for model in "abc"]
    world.run(30.0)
    assert {request.ended for request in requests} == {"served"}
    assert world.verdict() == []


def test_sleep_and_pin_by_operators() -> None:
    world = trio()
    up = [model for model in "abc" if world.engines[model].phase is Phase.RESIDENT]
    for model in up:
        world.policy(model, Policy(pin=True))
    world.run(1.0)
    refused = world.request(asleep(world))
    world.run(10.0)
    assert refused.ended == "refused"
    world.ask(up[0], Order.OFFLOAD)
    world.run(5.0)
    served = world.request(next(m for m in "abc" if m not in up))
    world.run(5.0)
    assert served.ended == "served"


def _blocked_by_nothing(ledger: Ledger, device: DeviceId) -> str:
    return "" if ledger.device(device).present(ledger.epoch) else "absent"


def _charges_nobody(ledger: Ledger, engine: EngineEntry, device: DeviceId) -> int:
    return 0


def _never_over(rounds: Round, entry: DeviceEntry) -> None:
    return None


def _histories(seeds: range) -> None:
    for seed in seeds:
        history(seed, seconds=40.0)


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (Ledger, "blocked", _blocked_by_nothing),
        (Ledger, "others", _charges_nobody),
        (Round, "_overdue", _never_over),
    ],
)
@pytest.mark.timeout(600)
def test_the_simulation_notices(owner: type, name: str, wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness can fail: a scheduler without one of its rules is found out within a few seeds."""
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(Violated):
        _histories(range(60))
