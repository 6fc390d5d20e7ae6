"""Floors and aims of `sharded_linear`."""

from __future__ import annotations

from benchmarks.figures import Goal

GOALS = {
    "mapped_over_replicated": Goal(1.02, 0.97, at_least=False),
    "overlap_over_ideal": Goal(1.11, 1.03, at_least=False),
    "broadcast_over_sum": Goal(1.0, 0.85, at_least=False),
    "bytes_over_predicted": Goal(1.02, 1.0, at_least=False),
}
