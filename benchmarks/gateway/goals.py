"""Floors and aims of `gateway`; where answers come in herds they are the same."""

from __future__ import annotations

from benchmarks.figures import Goal

_RELAYED = {
    "rps_over_direct_256": Goal(0.5, 0.8, at_least=True),
    "rps_over_nginx_256": Goal(0.6, 1.0, at_least=True),
    "added_ttft_p99": Goal(0.10, 0.05, at_least=False),
}
GOALS = {
    **_RELAYED,
    **{f"{name}_herd": goal for name, goal in _RELAYED.items()},
    "held_kb": Goal(64, 16, at_least=False),
    "watch_core_share": Goal(0.05, 0.01, at_least=False),
}
