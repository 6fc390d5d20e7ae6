"""Floors and aims of `tax`."""

from __future__ import annotations

from benchmarks.figures import Goal

GOALS = {
    "resident_over_plain": Goal(0.97, 0.995, at_least=True),
    "resident_over_stock": Goal(0.95, 1.0, at_least=True),
}
