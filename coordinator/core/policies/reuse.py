"""How soon a model will be used again, from when it was: a number from 0 (not before it matters) to 1 (at once).

For a residual time R until the next use it is E[exp(-R / horizon)]: a use that comes before the place would be needed
by somebody else anyway counts in full, one far beyond it hardly. R's distribution is that of the kept gaps longer than
the time since the last use (so a timer is seen coming, and a session that has ended is given up), together with a prior
for models of which little is known: partly memoryless with the model's own rate, partly the gaps of all its neighbours.
Twice: in seconds, and in turns, which see a chain of models whose steps take a while each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp

from coordinator.core.arrivals import Habit, Neighbourhood

PRIOR = 4.0
"""The prior weighs as much as so many gaps of the model itself."""
POOLED_SHARE = 0.6
"""How much of the prior is the neighbours'."""
FADING = 0.93
"""An older gap weighs so much less than the next newer one."""
RECENCY = 0.05
"""How much of the value is plain recency: what least-recently-used knows."""


def reuse(habit: Habit, around: Neighbourhood, residents: int, now: float, horizon: float) -> float:
    """`horizon`: in stays; a stay is the time from one restore to the next, times the residents there."""
    seconds, turns = around.pace(now)
    stay_s, stay_t = (pace * horizon * max(1, residents) for pace in (seconds, turns))
    age_s = 0.0 if habit.active else max(0.0, now - habit.until)
    rate = habit.rate(around.since, now)
    by_time = _discounted(habit.gaps, age_s, stay_s, _prior(rate, around.gaps, age_s, stay_s))
    if habit.place != around.device:
        return by_time  # turns are counted by device: those of another one say nothing here
    age_t = max(0, around.turn - habit.turn)
    rate_t = habit.uses / max(1, around.turn)
    by_turn = _discounted(habit.turns, age_t, stay_t, _memoryless(min(1.0, rate_t), stay_t))
    return (1 - RECENCY) * (by_time + by_turn) / 2 + RECENCY * exp(-3.0 * age_t / stay_t)


def _memoryless(rate: float, stay: float) -> float:
    return rate / (rate + 1 / stay)


def _prior(rate: float, pool: Iterable[float], age: float, stay: float) -> float:
    later = [exp((age - gap) / stay) for gap in pool if gap > age]
    own = _memoryless(rate, stay)
    return (1 - POOLED_SHARE) * own + POOLED_SHARE * sum(later) / len(later) if later else own


def _discounted(gaps: Sequence[float], age: float, stay: float, prior: float) -> float:
    value, weight, fading = PRIOR * prior, PRIOR, 1.0
    for gap in reversed(gaps):
        if gap > age:
            value += fading * exp((age - gap) / stay)
            weight += fading
        fading *= FADING
    return value / weight
