"""Where requests may go, told by leader and standby alike, and only when it changes."""

from __future__ import annotations

import pytest

from coordinator.core.commands import Grant, Route
from coordinator.core.events import DeviceSeen, Listed, SeatSeen, TokenSeen
from coordinator.core.model import Order, Phase, Policy, Seat, Token
from tests.helpers.stage import Stage, holder, of, only, routes


@pytest.fixture(params=[True, False], ids=["leader", "standby"])
def stage(request: pytest.FixtureRequest) -> Stage:
    return Stage(lead=request.param)


def restore(stage: Stage, engine: str, order: Order = Order.RESTORE, *, token: bool = True) -> int:
    """Some leader's transaction is seen."""
    spec, _, lease = stage.specs[engine]
    revision = stage.next()
    seat = Seat(holder=spec.holder, lease=lease, order=order, bytes=40, limit_s=60.0)
    facts = [SeatSeen("n/0", seat, revision)]  # type: ignore[arg-type]
    value = Token(holder=spec.holder, lease=lease, order=order, bytes=40) if token else None
    stage.see(*facts, TokenSeen("n/0", value, revision))  # type: ignore[arg-type]
    return revision


def test_a_resident_is_an_endpoint_and_a_sleeper_is_not(stage: Stage) -> None:
    assert routes(stage.engine("a", Phase.RESIDENT)) == {"a": ["a"]}
    assert routes(stage.engine("b")) == {"b": []}


def test_nothing_is_told_twice(stage: Stage) -> None:
    stage.engine("a", Phase.RESIDENT)
    assert routes(stage.load("a", running=3)) == {}
    assert routes(stage.see(stage.spec("a"))) == {}


def test_the_url_comes_from_the_spec(stage: Stage) -> None:
    (route,) = of(Route, stage.engine("a", Phase.RESIDENT, aliases=("z", "alias")))
    assert route.endpoints[0].url == "http://a"
    assert route.aliases == ("alias", "z")


def test_a_granted_restore_is_an_endpoint_when_its_token_is_seen(stage: Stage) -> None:
    stage.engine("a")
    stage.said.clear()
    revision = restore(stage, "a")
    assert routes(stage.said) == {"a": ["a"]}
    assert routes(stage.see(stage.residency("a", Phase.RESTORING))) == {}
    assert routes(stage.see(stage.device(closed=revision), stage.own("n/0", "a"))) == {}
    assert routes(stage.see(stage.residency("a", Phase.RESIDENT, fence=revision))) == {}


def test_a_granted_restore_is_an_endpoint_as_soon_as_the_answer_is_there() -> None:
    stage = Stage()
    stage.engine("a")
    grant = only(Grant, stage.demand("a", 1))
    stage.said.clear()
    stage.took(grant)
    assert routes(stage.said) == {"a": ["a"]}


def test_a_start_up_is_no_endpoint_before_it_is_resident(stage: Stage) -> None:
    stage.engine("a", Phase.STARTING)
    stage.said.clear()
    revision = restore(stage, "a")
    assert routes(stage.said) == {}
    assert routes(stage.see(stage.own("n/0", "a"), stage.device(closed=revision))) == {}
    assert routes(stage.see(stage.residency("a", Phase.RESIDENT, fence=revision))) == {"a": ["a"]}


def test_an_offload_ends_it_when_its_token_is_seen(stage: Stage) -> None:
    stage.engine("a", Phase.RESIDENT)
    stage.said.clear()
    revision = restore(stage, "a", Order.OFFLOAD)
    assert routes(stage.said) == {"a": []}
    assert routes(stage.see(stage.device(closed=revision), stage.disown("n/0", "a"))) == {}
    assert routes(stage.see(stage.residency("a", Phase.OFFLOADED, fence=revision))) == {}


def test_another_engines_turn_does_not_bring_a_late_sleeper_back(stage: Stage) -> None:
    """Its own word still says resident when the device already belongs to another."""
    stage.engine("a", Phase.RESIDENT, weights=60)
    stage.engine("b", weights=60)
    revision = restore(stage, "a", Order.OFFLOAD)
    stage.see(stage.device(closed=revision), stage.disown("n/0", "a"))
    stage.said.clear()
    restore(stage, "b")
    assert routes(stage.said) == {"b": ["b"]}


def test_an_offload_that_was_never_entered_leaves_a_resident(stage: Stage) -> None:
    """Its token vanished with its lease, the daemon closed the seat, the engine is back with its pages."""
    stage.engine("a", Phase.RESIDENT)
    revision = restore(stage, "a", Order.OFFLOAD)
    assert routes(stage.gone("a")) == {"a": []}
    stage.specs.clear()
    assert routes(stage.engine("a", Phase.RESIDENT)) == {"a": []}
    assert routes(stage.see(stage.device(closed=revision))) == {"a": ["a"]}


def test_a_restore_that_was_denied_ends_it(stage: Stage) -> None:
    stage.engine("a")
    revision = restore(stage, "a")
    stage.said.clear()
    stage.see(stage.device(closed=revision))
    assert routes(stage.said) == {"a": []}


def test_a_restore_that_goes_on_without_its_lease_is_no_endpoint_until_it_is_over(stage: Stage) -> None:
    stage.engine("a")
    revision = restore(stage, "a")
    stage.gone("a")
    stage.specs.clear()
    stage.see(stage.spec("a"), stage.residency("a", Phase.RESTORING, busy=True))
    stage.said.clear()
    stage.see(stage.device(closed=revision), stage.own("n/0", "a"))
    assert routes(stage.said) == {}
    assert routes(stage.see(stage.residency("a", Phase.RESIDENT))) == {"a": ["a"]}


def test_lost_and_failed_engines_are_no_endpoints(stage: Stage) -> None:
    stage.engine("a", Phase.RESIDENT)
    stage.engine("b", Phase.RESIDENT)
    assert routes(stage.see(stage.residency("b", Phase.FAILED, error="digest"))) == {"b": []}
    (route,) = of(Route, stage.gone("a"))
    assert (route.endpoints, route.gone) == ((), True)


def test_a_model_is_gone_with_its_last_engine(stage: Stage) -> None:
    stage.engine("a1", Phase.RESIDENT, model="a")
    stage.engine("a2", Phase.RESIDENT, model="a")
    assert of(Route, stage.gone("a1"))[0].gone is False
    assert of(Route, stage.gone("a2"))[0].gone is True


def test_the_word_of_another_start_of_it_does_not_count(stage: Stage) -> None:
    stage.engine("a", Phase.RESIDENT)
    assert routes(stage.see(stage.spec("a", nonce="n2"))) == {"a": []}


def test_residents_serve_while_the_daemon_is_away(stage: Stage) -> None:
    stage.engine("a", Phase.RESIDENT)
    assert routes(stage.see(DeviceSeen("n/0", None, stage.next()))) == {}  # type: ignore[arg-type]


def test_a_drained_model_takes_nothing_new(stage: Stage) -> None:
    stage.engine("a", Phase.RESIDENT)
    stage.load("a", running=1)
    assert routes(stage.policy("a", Policy(drained=True))) == {"a": []}
    assert routes(stage.policy("a", None)) == {"a": ["a"]}


def test_a_listing_tells_only_what_changed(stage: Stage) -> None:
    stage.engine("a", Phase.RESIDENT)
    stage.engine("b")
    spec, revision, lease = stage.specs["a"]
    listed = Stage(lead=False)
    facts = (
        DeviceSeen("n/0", stage.states["n/0"], revision),  # type: ignore[arg-type]
        stage.spec("a"),
        stage.residency("a", Phase.RESIDENT),
    )
    assert listed.hear(Listed(facts, stage.revision))
    said = of(Route, stage.hear(Listed(facts, stage.revision)))
    assert [(route.model, route.gone) for route in said] == [("b", True)]
    assert (spec.holder, lease > 0) == (holder("a"), True)
