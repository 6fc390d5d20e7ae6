"""Floors and aims of `coordinator`."""

from __future__ import annotations

from benchmarks.figures import Goal

GOALS = {
    "decision_10k_over_10": Goal(4, 1.5, at_least=False),
    "writes_per_engine_second": Goal(0.1, 0.1, at_least=False),
    "writes_per_busy_engine_second": Goal(5, 5, at_least=False),
    "rss_mb_1000": Goal(200, 200, at_least=False),
}
