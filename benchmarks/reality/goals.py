"""Floor and aim of `reality`: two-sided, 0.8–1.25 and 0.95–1.05, judged by how far the ratio is from 1 either way."""

from __future__ import annotations

from benchmarks.figures import Goal

GOALS = {
    "sim_over_real_p50": Goal(0.8, 0.95, at_least=True),
    "off_by_p50": Goal(1.25, 1.05, at_least=False),
}
