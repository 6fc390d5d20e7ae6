"""The table of figures in README, made from `RESULTS.md`: `python -m benchmarks.headline`; `make bench` does it too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
README = FOLDER.parent / "README.md"
BEGIN, END = "<!-- FIGURES: from benchmarks/RESULTS.md -->", "<!-- /FIGURES -->"
HEAD = "| what | measured | 95 % | wanted at least | aim |\n|---|---|---|---|---|\n"
TOLD = {
    ("wake", "added_ttft_over_memcpy"): "time to first token that a sleeping model adds, ÷ a memcpy of its bytes; "
    "another leaves first",
    ("wake", "cold_over_wake"): "cold start ÷ wake, both to the first token",
    ("wake", "switch_over_restore"): "a switch ÷ the restore alone",
    ("wake", "d2h_bytes"): "bytes copied out of the device at a switch",
    ("handover", "order_over_watch_p50"): "order reaches the next engine, ÷ one etcd watch event",
    ("handover", "failover_over_ttl"): "a dead coordinator is replaced after, ÷ its lease",
    ("tax", "resident_over_plain"): "throughput of a resident engine ÷ the same without vNPU",
    (
        "gateway",
        "added_ttft_p99",
    ): "time to the first event that the gateway adds, 99th percentile ÷ direct median; 32 streams",
    ("gateway", "held_kb"): "memory for a held request, KB",
    ("weight_stream", "tcp_over_raw"): "weights over TCP ÷ the bare socket",
    ("kv_pull", "tcp_over_mooncake"): "KV pull over TCP ÷ Mooncake's TCP",
    ("policy", "cost_over_opt_mean"): "cost of the policy ÷ the best in hindsight, mean of 1,000 traces",
    ("reality", "sim_over_real_p50"): "the simulator's median time to first token ÷ that of real engines",
}
"""Benchmark and figure, and what it says to somebody who has not read the benchmark's page."""
_ROW = re.compile(
    r"^\| (?P<benchmark>\w+) \| `(?P<name>\w+)` \| (?P<value>[^|]*) \| (?P<ci95>[^|]*) \| [^|]* \| (?P<floor>[^|]*)"
    r" \| (?P<aim>[^|]*) \| (?P<meets>[^|]*) \|$",
    re.MULTILINE,
)


def table(results: str) -> str:
    """Markdown: those of `TOLD` that the page of results holds, in this order."""
    found = {(row["benchmark"], row["name"]): row for row in _ROW.finditer(results)}
    return HEAD + "".join(_row(said, found[key]) for key, said in TOLD.items() if key in found)


def _row(said: str, row: re.Match[str]) -> str:
    benchmark, missed = row["benchmark"], " (missed)" if row["meets"].strip() == "MISSED" else ""
    cells = (f"{said} ([{benchmark}](benchmarks/{benchmark}/README.md))", row["value"].strip() + missed)
    return f"| {' | '.join((*cells, *(row[key].strip() for key in ('ci95', 'floor', 'aim'))))} |\n"


def placed(readme: str, results: str) -> str:
    """README with the table of these results in its place. Raises ValueError where it has none."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README has no place between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table(results)}\n{END}{after}"


def shown(readme: str) -> Iterator[str]:
    """The rows that stand in README."""
    yield from (line for line in readme.partition(BEGIN)[2].partition(END)[0].splitlines() if line.startswith("| "))


def write() -> None:
    """README follows RESULTS.md."""
    README.write_text(placed(README.read_text(), (FOLDER / "RESULTS.md").read_text()))


if __name__ == "__main__":
    write()
