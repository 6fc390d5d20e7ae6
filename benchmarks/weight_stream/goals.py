"""Floors and aims of `weight_stream`."""

from __future__ import annotations

from benchmarks.figures import Goal

GOALS = {
    "tcp_over_raw": Goal(0.80, 0.93, at_least=True),
    "local_over_tcp": Goal(5.0, 10.0, at_least=True),
    "four_over_one": Goal(2.0, 1.3, at_least=False),
    "source_tpot_inflation": Goal(1.10, 1.02, at_least=False),
}
