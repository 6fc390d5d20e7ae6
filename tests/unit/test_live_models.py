"""Which models of a configuration that was read again a running node takes up and gives up."""

from __future__ import annotations

import pytest

from coordinator.config import Config, Device, Duration, Gateway, Model, Size
from coordinator.configured import reconfigured
from coordinator.live_models import carried, why_not_in, why_stays
from coordinator.supervise.turnover import change

ZERO, ONE = Device(0, Size(1 << 30)), Device(1, Size(1 << 30))


def config(*devices: Device, max_queue: int = 9, **models: object) -> Config:
    """Models by name, each with the device it is on, or with a whole section."""
    return Config(
        devices=list(devices or (ZERO, ONE)),
        gateway=Gateway(max_queue=max_queue),
        models={
            name.replace("_at_", "@"): each if isinstance(each, Model) else model(each) for name, each in models.items()
        },
    )


def model(device: object, kv_cache: int = 1 << 20) -> Model:
    return Model(path="/m", kv_cache=Size(kv_cache), device=device)  # type: ignore[arg-type]


def test_models_come_and_go() -> None:
    kept = carried(config(a=0, b=1), config(a=0, c=1, max_queue=3))
    assert (sorted(kept.models), kept.gateway.max_queue) == (["a", "c"], 3)
    found = change(config(a=0, b=1), config(a=0, c=1))
    assert (list(found.comes), found.goes) == (["c"], ("b",))


def test_what_runs_goes_on_as_it_was_started() -> None:
    kept = carried(config(a=0, b=1), config(a=model(1, 2 << 20), b=1))
    assert kept.models["a"] == model(0)
    assert change(config(a=0), config(a=1)).comes == {}


@pytest.mark.parametrize(
    ("running", "now", "word"),
    [
        (config(a=0), config(a=0, c=1), ""),
        (config(ZERO, a=0), config(ZERO, ONE, a=0, c=1), "no such device 1"),
        (config(ZERO, a=0), config(ZERO, ONE, a=0, c="any"), "devices have changed"),
        (config(a=0), config(Device(0, Size(2 << 30)), a=0, c=0), "no such device 0"),
        (config(a=0), config(a=0, c=0, c_at_prefill=1), ""),
        (config(ZERO, a=0), config(ZERO, ONE, a=0, c=0, c_at_prefill=1), "no such device 1"),
        (config(c=0), config(c=0, c_at_prefill=1), "c runs without roles"),
    ],
)
def test_what_cannot_come_in_waits_for_a_restart(running: Config, now: Config, word: str) -> None:
    names = sorted(set(now.models) - set(running.models))
    assert all(word in why_not_in(name, running, now) for name in names)
    assert all(bool(why_not_in(name, running, now)) == bool(word) for name in names)
    assert (set(names) <= set(carried(running, now).models)) == (not word)


def test_a_replica_comes_alone_and_goes_with_its_model() -> None:
    two, three = config(a=0, a_at_2=1), config(a=0, a_at_2=1, a_at_3=1)
    assert list(carried(two, three).models) == ["a", "a@2", "a@3"]
    assert list(carried(three, two).models) == ["a", "a@2", "a@3"]
    assert "other engines of a go on" in why_stays("a@3", two)
    assert list(carried(three, config(b=0)).models) == ["b"]


def test_roles_that_are_taken_away_wait() -> None:
    pair = config(a=0, a_at_prefill=1)
    assert sorted(carried(pair, config(a=0)).models) == ["a", "a@prefill"]
    assert list(carried(pair, config(b=0)).models) == ["b"]


def test_models_that_left_end_what_they_have_begun() -> None:
    told = reconfigured(config(a=0), ["b"]).models
    assert {str(name): settings.drained for name, settings in told.items()} == {"a": False, "b": True}


def test_durations_of_the_gateway_hold_for_engines_that_come() -> None:
    now = config(a=0, b=1)
    patient = Config(devices=now.devices, gateway=Gateway(max_wait=Duration(7)), models=now.models)
    assert carried(config(a=0), patient).gateway.max_wait == 7
