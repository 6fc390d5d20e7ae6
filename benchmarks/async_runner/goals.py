"""Floors and aims of `async_runner`: of what is on by default."""

from __future__ import annotations

from benchmarks.figures import Goal

GOALS = {
    "gain_over_ideal_min": Goal(0.85, 0.97, at_least=True),
    "tpot_5mb_c1": Goal(1.0, 0.8, at_least=False),
    "tpot_5mb_c16": Goal(1.0, 0.8, at_least=False),
    "tpot_200mb_c4": Goal(1.03, 0.985, at_least=False),
}
