"""What the demo found, as `report.json` (names fixed by docs/design.md) and as a table for people."""

from __future__ import annotations

import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text


class DeviceReport(msgspec.Struct, frozen=True):
    driver: str
    capacity_bytes: int


class ModelReport(msgspec.Struct, frozen=True):
    name: str
    bytes: int
    cold_start_s: float


class SwitchReport(msgspec.Struct, frozen=True, rename={"source": "from", "target": "to"}):
    """One forced switch. `ttft_asleep_s` is what the request that caused it saw, `ttft_awake_s` what the next one saw
    with a prompt of the same length; `memcpy_ratio` is their difference ÷ a one-thread memcpy of `bytes`;
    `cold_ratio` is the model's cold start to first token ÷ `ttft_asleep_s`."""

    source: str
    target: str
    ttft_awake_s: float
    ttft_asleep_s: float
    restore_s: float
    bytes: int
    d2h_bytes: int
    memcpy_ratio: float
    cold_ratio: float
    outputs_identical: bool


class InFlightReport(msgspec.Struct, frozen=True):
    outputs_identical: bool
    recomputed_tokens: int


class KilledReport(msgspec.Struct, frozen=True):
    engine: str
    reclaimed_s: float
    others_ok: bool


class Report(msgspec.Struct, frozen=True):
    vllm: str
    etcd: str
    device: DeviceReport
    models: list[ModelReport]
    switches: list[SwitchReport]
    in_flight: InFlightReport
    killed: KilledReport
    invariants: dict[str, bool]

    @property
    def passed(self) -> bool:
        """Whether the demo may exit with 0: every output identical, nothing copied out for clean weights,
        every invariant held, the others went on."""
        identical = all(switch.outputs_identical for switch in self.switches) and self.in_flight.outputs_identical
        clean = all(switch.d2h_bytes == 0 for switch in self.switches)
        return identical and clean and self.killed.others_ok and all(self.invariants.values())


COLUMNS = ("model", "MB", "cold s", "awake ms", "asleep ms", "GB/s", "÷ memcpy", "cold ÷", "same")
LEGEND = """cold: start of the process to first token. awake, asleep: first token of a request through the gateway.
GB/s: restore. ÷ memcpy: (asleep - awake) ÷ one thread's memcpy of the bytes. cold ÷: cold ÷ asleep.
same: the tokens are those of stock vLLM."""


def render(report: Report) -> RenderableType:
    """The closing table: a row a switch, then the invariants. It fits 80 columns."""
    cold = {model.name: model.cold_start_s for model in report.models}
    table = Table(title="Every switch", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for switch in report.switches:
        table.add_row(
            switch.target,
            f"{switch.bytes / 1e6:.0f}",
            f"{cold[switch.target]:.1f}",
            f"{switch.ttft_awake_s * 1e3:.0f}",
            f"{switch.ttft_asleep_s * 1e3:.0f}",
            f"{switch.bytes / switch.restore_s / 1e9:.1f}" if switch.restore_s else "–",
            f"{switch.memcpy_ratio:.2f}",
            f"{switch.cold_ratio:.0f} ×",
            "yes" if switch.outputs_identical else "NO",
        )
    return Group(table, Text(LEGEND, style="dim"), Text(), _verdict(report))


def _verdict(report: Report) -> Text:
    in_flight, killed = report.in_flight, report.killed
    lines = [
        f"in flight across a switch: {'identical' if in_flight.outputs_identical else 'DIFFERENT'}, "
        f"{in_flight.recomputed_tokens} tokens recomputed",
        f"{killed.engine} killed with -9: pages back after {killed.reclaimed_s * 1e3:.0f} ms, "
        f"the others {'went on' if killed.others_ok else 'did NOT go on'}",
        "invariants: " + ", ".join(f"{name} {'holds' if ok else 'BROKEN'}" for name, ok in report.invariants.items()),
    ]
    return Text("\n".join(lines), style="" if report.passed else "bold red")


def show(console: Console, report: Report) -> None:
    console.print(render(report))
