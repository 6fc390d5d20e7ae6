"""Floors and aims of `policy`."""

from __future__ import annotations

from benchmarks.figures import Goal

GOALS = {
    "cost_over_opt_mean": Goal(1.25, 1.08, at_least=False),
    "cost_over_opt_worst": Goal(1.8, 1.3, at_least=False),
    "excess_over_lru_excess": Goal(0.75, 0.4, at_least=False),
    "worst_family_over_lru": Goal(1.02, 1.0, at_least=False),
}
