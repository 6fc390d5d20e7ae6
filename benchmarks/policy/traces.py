"""Which traces are judged: fixed, with the generator, before any policy was tuned on them.

Tuning looks at `TUNING` only; the figures are of `JUDGED`, and `HELD_OUT` says whether they hold elsewhere."""

from __future__ import annotations

from coordinator.simulate.generate import FAMILIES

PER_FAMILY = 200
JUDGED = range(PER_FAMILY)
HELD_OUT = range(PER_FAMILY, 2 * PER_FAMILY)
TUNING = range(10_000, 10_040)


def names(seeds: range) -> list[tuple[str, int]]:
    """(family, seed) of each trace: `len(seeds)` of every family."""
    return [(family, seed) for family in FAMILIES for seed in seeds]
