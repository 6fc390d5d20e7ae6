"""PROTOCOL.md by exhaustive search: nothing is broken, nobody waits for ever; and each rule is there for a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.token_model import ask

SMALL = [
    {},
    {"lease": 1},
    {"crash": 1},
    {"hang": 1},
    {"daemon": 1},
    {"leader": 1},
    {"engines": 2, "devices": 2, "wanted": 3, "residents": 0, "crash": 1, "lag": 3},
    {"loss": 1, "lag": 2},
]
SYSTEM = [
    {"lease": 1, "crash": 1},
    {"lease": 1, "leader": 1},
    {"hang": 1, "daemon": 1},
    {"engines": 3, "wanted": 6, "lag": 3, "lease": 1},
    {"engines": 3, "devices": 2, "gang": 1, "residents": 6, "wanted": 1, "lag": 2, "crash": 1},
    {"impatience": 1, "lease": 1, "lag": 3},
]
LARGE = [
    {"lease": 2, "crash": 1},
    {"lease": 1, "crash": 1, "daemon": 1},
    {"lease": 1, "hang": 1, "leader": 1, "lag": 3},
    {"lease": 1, "loss": 1, "lag": 2},
    {"engines": 3, "devices": 2, "gang": 1, "residents": 6, "wanted": 1, "lag": 2, "lease": 1, "crash": 1},
    {"engines": 3, "wanted": 6, "lag": 3, "lease": 1, "daemon": 1},
]
DOUBLE = "double grant: a valid fence, and no pages are free"
TWO = "I1: two engines in an operation on one device"
OVER = "I4: more is mapped than the device has"
WITHOUT = {
    "leave": ({}, "wedge"),
    "seat": ({"residents": 0, "wanted": 3, "lag": 3, "most": 300_000}, DOUBLE),
    "closed": ({"lease": 1}, DOUBLE),
    "persist_owners": ({"daemon": 1}, OVER),
    "persist_open": ({"daemon": 1, "lease": 1, "lag": 3}, TWO),
    "reclaim": ({"hang": 1}, "wedge"),
    "last_fence": ({"loss": 1, "lag": 2}, "wedge"),
    "epoch": ({"loss": 1, "lag": 1}, "wedge"),
    "close_unentered": ({"lease": 1}, "wedge"),
    "keep_pages": ({"lease": 1}, OVER),
}
"""For each rule the setting in which taking it away shows, and what then happens."""


def holds(model: Path, setting: dict[str, int]) -> None:
    found = ask(model, **setting)
    assert found["exhausted"]
    assert found["states"] > 50
    assert (found["broken"], found["wedge"]) == ({}, [])
    assert found["wedged"] == 0


@pytest.mark.parametrize("setting", SMALL, ids=str)
def test_the_protocol_holds(model: Path, setting: dict[str, int]) -> None:
    holds(model, setting)


@pytest.mark.system
@pytest.mark.parametrize("setting", SYSTEM, ids=str)
def test_it_holds_under_several_faults(model: Path, setting: dict[str, int]) -> None:
    holds(model, setting)


@pytest.mark.campaign
@pytest.mark.parametrize("setting", LARGE, ids=str)
def test_it_holds_in_large(model: Path, setting: dict[str, int]) -> None:
    holds(model, setting)


@pytest.mark.parametrize("rule", WITHOUT)
def test_each_rule_is_needed(model: Path, rule: str) -> None:
    setting, hole = WITHOUT[rule]
    found = ask(model, **setting, **{f"rule_{rule}": 0})
    if hole == "wedge":
        assert found["exhausted"]
        assert found["wedged"]
    else:
        assert hole in found["broken"]
        assert found["broken"][hole]
