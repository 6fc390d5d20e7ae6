"""Traces and fleets: read, written, generated; and what is wrong with them said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.errors import ConfigError
from coordinator.simulate import fleet as fleets
from coordinator.simulate import trace
from coordinator.simulate.generate import DENSITY, FAMILIES, workload
from coordinator.simulate.trace import Request

FLEET = """\
devices: [{id: n/0, capacity: 40GB, restore: 10GB, offload: 5GB}]
models:
  a: {weights: 20GB, kv: 1GB, fixed: 100ms, ttft_objective: 2s}
  b: {weights: 30GB, pin: true}
"""


def load(tmp_path: Path, text: str) -> fleets.Fleet:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    return fleets.load(path, {})


def test_a_fleet_knows_what_moving_takes(tmp_path: Path) -> None:
    fleet = load(tmp_path, FLEET)
    assert fleet.models["a"].devices == ["n/0"]
    assert fleet.restore_s("a") == pytest.approx(2.2, abs=0.01)
    assert fleet.offload_s("a") == pytest.approx(0.205)
    assert fleet.models["a"].settings.ttft_objective == 2.0
    assert fleet.models["b"].settings.pin


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("devices: []\n", "devices: no device is declared"),
        ("devices: [{id: n/0, capacity: 1GB}]\n", "models: no model is named"),
        (FLEET.replace("20GB", "much"), "models.a.weights: .*'much' is not a size"),
        (FLEET.replace("30GB", "41GB"), "models.b.weights: needs .* of n/0, which has"),
        (FLEET.replace("pin: true", "pn: true"), "models.b.pn: unknown key .*did you mean `pin`"),
        (FLEET.replace("pin: true", "devices: [n/1]"), "models.b.devices: no device 'n/1' is declared"),
        (FLEET.replace("- {", "{").replace("devices: [", "devices: [{id: n/9, capacity: 9GB}, "), "models.a.devices"),
    ],
)
def test_what_is_wrong_with_a_fleet_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        load(tmp_path, text)
    assert "\n" not in str(error.value)


def test_a_trace_is_read_as_it_was_written_in_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    trace.write(path, [Request(2.0, "b", 3, 4), Request(1.0, "a")])
    assert trace.read(path, ["a", "b"]) == [Request(1.0, "a"), Request(2.0, "b", 3, 4)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"t": 1, "model": "a"}\n{"t": -1, "model": "a"}\n', r"line 2: .*`\$.t`"),
        ('{"t": 1, "model": "c"}\n', "line 1: no model 'c' .the fleet has a, b"),
        ("\n", "holds no request"),
        ("nonsense\n", "line 1: "),
    ],
)
def test_what_is_wrong_with_a_trace_is_named_by_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        trace.read(path, ["a", "b"])
    with pytest.raises(ConfigError, match="cannot be read"):
        trace.read(tmp_path / "nowhere", ["a"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_is_always_the_same_and_as_promised(family: str) -> None:
    one, two, other = workload(family, 3), workload(family, 3), workload(family, 4)
    assert one == two
    assert one.requests != other.requests
    assert len(one.requests) == 200
    assert [request.t for request in one.requests] == sorted(request.t for request in one.requests)
    device = one.fleet.devices[0]
    total = sum(model.weights + model.kv for model in one.fleet.models.values())
    assert DENSITY[0] <= total / device.capacity <= DENSITY[1] + 0.01
    assert all(one.fleet.pages(name, device.id) <= device.capacity for name in one.fleet.models)


def test_the_judged_traces_are_what_they_were_when_they_were_fixed() -> None:
    """A change of the generator would change what is judged: then the figures must be made anew, knowingly."""
    said = {family: workload(family, 0).requests[100] for family in FAMILIES}
    assert {family: (request.t, request.model) for family, request in said.items()} == FIXED


FIXED = {
    "tail": (2748.717, "m4"),
    "bursts": (503.597, "m2"),
    "diurnal": (2641.941, "m6"),
    "timers": (925.547, "m1"),
    "chains": (1346.376, "m5"),
}
