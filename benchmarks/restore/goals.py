"""Floors and aims of `restore`."""

from __future__ import annotations

from benchmarks.figures import Goal

GOALS = {
    "pooled_over_limit": Goal(0.80, 0.95, at_least=True),
    "pooled_over_memcpy": Goal(1.3, 2.2, at_least=True),
    "pooled_over_fresh_4k": Goal(8, 12, at_least=True),
    "pooled_over_fresh_huge": Goal(1.8, 2.3, at_least=True),
    "growth_tensors": Goal(1.10, 1.05, at_least=False),
    "linearity_bytes": Goal(1.15, 1.05, at_least=False),
    "remap_ms_per_gib": Goal(1, 0.1, at_least=False),
    "unmap_ms_per_gib": Goal(1, 0.1, at_least=False),
}
