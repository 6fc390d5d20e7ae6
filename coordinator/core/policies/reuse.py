"""How soon a model will be used again, from when it was: a number from 0 (not before it matters) to 1 (at once).

For a residual time R until the next use it is E[exp(-R / horizon)]: a use that comes before the place would be needed
by somebody else anyway counts in full, one far beyond it hardly. R's distribution is that of the kept gaps longer than
the time since the last use (so a timer is seen coming, and a session that has ended is given up), together with a prior
for models of which little is known: partly memoryless with the model's own rate, partly the gaps of all its neighbours.
Twice: in seconds, and in turns, which see a chain of models whose steps take a while each time.

Sessions that nobody has seen before are foretold better by plain recency, what least-recently-used knows. How much that
counts is learned by device: at each use that goes over to another model, how likely had each of the two called it?
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp, log

from coordinator.core.habits import Habit, Neighbourhood
from coordinator.core.model import ModelId

PRIOR = 4.0
"""The prior weighs as much as so many gaps of the model itself."""
POOLED_SHARE = 0.6
"""How much of the prior is the neighbours'."""
FADING = 0.93
"""An older gap weighs so much less than the next newer one."""
RECENCY = (0.05, 0.6)
"""How much of the value is plain recency, where gaps foretell better and where it does."""
LEARNING = 0.5
"""How fast the odds between the two count."""
FORGETTING = 0.99
"""The odds of the past, at each turn."""
SOON, LATELY = 0.15, 0.5
"""How far ahead the gaps, and how far back recency is asked when the two are weighed, in stays."""
SURPRISE = 1e-3
"""Nothing is called less likely than that."""
UNTAUGHT = 3
"""So many restores must have been seen: before, how long a stay is is not known."""


def reuse(habit: Habit, around: Neighbourhood, residents: int, now: float, horizon: float) -> float:
    """`horizon`: in stays; a stay is the time from one restore to the next, times the residents there."""
    stay_s, stay_t = (pace * horizon * max(1, residents) for pace in around.pace(now))
    by_gaps = _by_gaps(habit, around, now, stay_s, stay_t)
    if habit.place != around.device:
        return by_gaps
    share = recency_share(around)
    return (1 - share) * by_gaps + share * _by_recency(habit, around, stay_t)


def recency_share(around: Neighbourhood) -> float:
    """How much of the value is plain recency on this device, by who has foretold its uses better."""
    least, most = RECENCY
    return least + (most - least) / (1 + exp(-LEARNING * max(-100.0, min(100.0, around.odds))))


def weigh(around: Neighbourhood, model: ModelId, now: float) -> None:
    """The use goes over to `model`, of which nothing is noted yet: who had called that more likely, the gaps (with the
    least share of recency) or recency (with the most)?"""
    known = {name: habit for name, habit in around.recent.items() if name != around.last}
    if model not in known or len(known) < 2 or len(around.restores) <= UNTAUGHT:
        return
    stay_s, stay_t = (pace * around.residents for pace in around.pace(now))
    said = [
        (_by_gaps(habit, around, now, SOON * stay_s, SOON * stay_t), _by_recency(habit, around, LATELY * stay_t))
        for habit in known.values()
    ]
    at = list(known).index(model)
    gaps, recency = (_likely([(1 - share) * g + share * r for g, r in said], at) for share in RECENCY)
    around.odds = FORGETTING * around.odds + log(recency / gaps)


def _likely(values: Sequence[float], at: int) -> float:
    """Of all that could have come, how likely that one was called."""
    return (values[at] + SURPRISE) / (sum(values) + SURPRISE * len(values))


def _by_gaps(habit: Habit, around: Neighbourhood, now: float, stay_s: float, stay_t: float) -> float:
    """Turns are counted by device: those of another one say nothing here."""
    age_s = 0.0 if habit.active else max(0.0, now - habit.until)
    rate = habit.rate(around.since, now)
    by_time = _discounted(habit.gaps, age_s, stay_s, _prior(rate, around.gaps, age_s, stay_s))
    if habit.place != around.device:
        return by_time
    rate_t = min(1.0, habit.uses / max(1, around.turn))
    by_turn = _discounted(habit.turns, _turns(habit, around), stay_t, _memoryless(rate_t, stay_t))
    return (by_time + by_turn) / 2


def _by_recency(habit: Habit, around: Neighbourhood, stay_t: float) -> float:
    return exp(-3.0 * _turns(habit, around) / stay_t)


def _turns(habit: Habit, around: Neighbourhood) -> int:
    """Since its last use."""
    return max(0, around.turn - habit.turn)


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
