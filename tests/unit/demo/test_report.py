"""The demo's report: the names that other tools read, the verdict, and the table."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from rich.console import Console

from coordinator.demo.report import (
    DeviceReport,
    InFlightReport,
    KilledReport,
    ModelReport,
    Report,
    SwitchReport,
    render,
)


def report(**changes: Any) -> Report:
    switch = SwitchReport("b", "a", 0.1, 0.2, 0.05, 1_000_000_000, 0, 0.9, 150.0, outputs_identical=True)
    whole = Report(
        vllm="0.32.0",
        etcd="3.5.1",
        device=DeviceReport("host", 2 << 30),
        models=[ModelReport("a", 1_000_000_000, 30.0)],
        switches=[switch],
        in_flight=InFlightReport(outputs_identical=True, recomputed_tokens=0),
        killed=KilledReport("a", 0.01, others_ok=True),
        invariants={f"I{n}": True for n in range(1, 7)},
    )
    return msgspec.structs.replace(whole, **changes)


def test_names_are_those_of_the_documented_report() -> None:
    found = json.loads(msgspec.json.encode(report()))
    assert set(found) == {"vllm", "etcd", "device", "models", "switches", "in_flight", "killed", "invariants"}
    assert set(found["device"]) == {"driver", "capacity_bytes"}
    assert set(found["models"][0]) == {"name", "bytes", "cold_start_s"}
    assert list(found["switches"][0]) == [
        "from", "to", "ttft_awake_s", "ttft_asleep_s", "restore_s", "bytes", "d2h_bytes",
        "memcpy_ratio", "cold_ratio", "outputs_identical",
    ]  # fmt: skip
    assert set(found["in_flight"]) == {"outputs_identical", "recomputed_tokens"}
    assert set(found["killed"]) == {"engine", "reclaimed_s", "others_ok"}


def test_a_good_run_passes() -> None:
    assert report().passed


@pytest.mark.parametrize(
    "changes",
    [
        {"switches": [msgspec.structs.replace(report().switches[0], outputs_identical=False)]},
        {"switches": [msgspec.structs.replace(report().switches[0], d2h_bytes=1)]},
        {"in_flight": InFlightReport(outputs_identical=False, recomputed_tokens=0)},
        {"killed": KilledReport("a", 0.01, others_ok=False)},
        {"invariants": {"I4": False}},
    ],
)
def test_one_fault_fails_it(changes: dict[str, Any]) -> None:
    assert not report(**changes).passed


def test_the_table_fits_a_terminal() -> None:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(render(report()))
    row = next(line for line in captured.get().splitlines() if line.startswith("a "))
    assert row.split() == ["a", "1000", "30.0", "100", "200", "20.0", "0.90", "150", "×", "yes"]
