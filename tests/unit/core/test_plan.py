"""Plans against what those ahead in the queue will change."""

from __future__ import annotations

from coordinator.core.model import Phase, Policy
from coordinator.core.plan import Plan, Projection, Verdict, plan
from coordinator.core.policy import Wanted
from coordinator.core.settings import Settings
from tests.helpers.stage import Stage


def made(stage: Stage, engine: str, projection: Projection) -> Plan:
    world = stage.scheduler._world()
    entry = stage.scheduler._ledger.engines[engine]  # type: ignore[index]
    wanted = Wanted(entry.id, entry.model or entry.id, Settings(), stage.now)  # type: ignore[arg-type]
    return plan(world, wanted, entry, projection, stage.now)


def victims(made_: Plan) -> list[str]:
    return [victim.holder.engine for victim in made_.victims]


def test_a_victim_makes_room_once() -> None:
    stage = Stage(lead=False)
    stage.engine("a", Phase.RESIDENT, weights=90)
    for engine in ("b", "c", "d"):
        stage.engine(engine, weights=60)
    projection = Projection()
    first = made(stage, "b", projection)
    assert (first.verdict, victims(first)) == (Verdict.EVICT, ["a"])
    projection.reserve(stage.scheduler._world(), first)
    second = made(stage, "c", projection)
    assert (second.verdict, victims(second), second.holds) == (Verdict.WAIT, [], False)
    assert second.why == "what is ahead of it needs the room first"


def test_room_that_is_being_made_is_waited_for() -> None:
    stage = Stage(lead=False)
    stage.engine("a", Phase.RESIDENT, weights=90)
    stage.engine("b", weights=40)
    stage.engine("c", weights=40)
    projection = Projection()
    projection.reserve(stage.scheduler._world(), made(stage, "b", projection))
    second = made(stage, "c", projection)
    assert (second.verdict, victims(second), second.holds) == (Verdict.WAIT, [], True)
    assert second.why == "room is being made"


def test_the_pinned_are_not_even_waited_for() -> None:
    stage = Stage(lead=False)
    stage.engine("p", Phase.RESIDENT, weights=30)
    stage.policy("p", Policy(pin=True))
    stage.engine("a", Phase.RESIDENT, weights=60)
    stage.engine("b", weights=60)
    stage.engine("c", weights=60)
    projection = Projection()
    projection.reserve(stage.scheduler._world(), made(stage, "b", projection))
    second = made(stage, "c", projection)
    assert (second.verdict, victims(second), second.holds) == (Verdict.WAIT, [], False)


def test_who_may_leave_later_is_named() -> None:
    stage = Stage(lead=False, settings=Settings(keep_alive=None, min_residency=7.0))
    stage.engine("a", Phase.RESIDENT, weights=60)
    stage.engine("b", weights=60)
    later = made(stage, "b", Projection())
    assert (later.verdict, later.until, later.holds) == (Verdict.WAIT, stage.now + 7.0, True)
    assert later.why == "waits until a may leave"
    assert [victim.candidate.why for victim in later.pool] == ["idle for 0.0 s, stays 7.0 s more"]


def test_it_fits() -> None:
    stage = Stage(lead=False)
    stage.engine("a")
    assert made(stage, "a", Projection()).verdict is Verdict.GO
