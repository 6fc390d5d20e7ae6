"""Floors and aims of `wake`."""

from __future__ import annotations

from benchmarks.figures import Goal

GOALS = {
    "added_ttft_over_memcpy": Goal(1.5, 0.2, at_least=False),
    "cold_over_wake": Goal(80, 200, at_least=True),
    "switch_over_restore": Goal(1.3, 1.05, at_least=False),
    "d2h_bytes": Goal(0, 0, at_least=False),
    "moved_share": Goal(0.99, 1.0, at_least=True),
    "recomputed_tokens": Goal(0, 0, at_least=False),
}
