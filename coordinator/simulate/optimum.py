"""The offline optimum: the least restore seconds by which a known sequence of requests can be served in its order.

`exact` walks over residency sets (Held-Karp's way over subsets): after each request the set of models that are resident
is one of those that fit and hold the request's model; loading before it is asked for and leaving early never help.
`bound` is a lower bound for any size: the Lagrangian dual of the interval formulation of caching (a model is kept from
one of its requests to the next, or pays its restore again; kept models fit beside the one that is served). Every
multiplier vector gives a bound (weak duality); subgradient steps (Held, Wolfe and Crowder 1974) make it tight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import gcd

import msgspec

MOST_MODELS = 8
MOST_STEPS = 400
MOST_UNITS = 1_000_000
PATIENCE = 8
"""Steps without progress, then they become half as long."""


class Problem(msgspec.Struct, frozen=True):
    """`order` of service by model; `cost` of a restore in seconds; `bytes` by model and device; `capacity`."""

    order: tuple[str, ...]
    cost: Mapping[str, float]
    bytes: Mapping[str, Mapping[str, int]]
    capacity: Mapping[str, int]

    @property
    def models(self) -> list[str]:
        return sorted(set(self.order))

    def collapsed(self) -> tuple[str, ...]:
        """Without repetitions in a row: the second one is always warm."""
        return tuple(m for before, m in zip((None, *self.order), self.order, strict=False) if m != before)

    def fits(self, models: Sequence[str]) -> bool:
        return all(sum(self.bytes[m].get(d, 0) for m in models) <= room for d, room in self.capacity.items())


class Optimum(msgspec.Struct, frozen=True):
    """`seconds`: exact, or proven not to be more than the optimum."""

    seconds: float
    exact: bool


def optimum(problem: Problem) -> Optimum:
    """Exact for up to `MOST_MODELS` models, else a lower bound."""
    if len(problem.models) <= MOST_MODELS:
        return Optimum(exact(problem), exact=True)
    return Optimum(bound(problem), exact=False)


def exact(problem: Problem) -> float:
    """Seconds; work grows with requests times residency sets, so only for few models."""
    bits = {model: 1 << n for n, model in enumerate(problem.models)}
    leave = _Leavings(problem, bits)
    best: dict[int, float] = {0: 0.0}
    for model in problem.collapsed():
        bit, cost = bits[model], problem.cost[model]
        after: dict[int, float] = {}
        for held, paid in best.items():
            if held & bit:
                after[held] = min(paid, after.get(held, paid))
                continue
            for kept in leave(held, model):
                after[kept] = min(paid + cost, after.get(kept, paid + cost))
        best = after
    return min(best.values())


class _Leavings:
    """Which sets can follow when a model must come in: all that fit and from which nobody left in vain."""

    def __init__(self, problem: Problem, bits: Mapping[str, int]) -> None:
        self._problem = problem
        self._bits = bits
        self._known: dict[tuple[int, str], tuple[int, ...]] = {}

    def __call__(self, held: int, model: str) -> tuple[int, ...]:
        key = (held, model)
        if key not in self._known:
            self._known[key] = self._maximal(held, model)
        return self._known[key]

    def _maximal(self, held: int, model: str) -> tuple[int, ...]:
        inside = [m for m, bit in self._bits.items() if held & bit]
        found: list[int] = []
        for count in range(len(inside), -1, -1):
            for kept in combinations(inside, count):
                mask = sum(self._bits[m] for m in kept) | self._bits[model]
                if not any(mask & other == mask for other in found) and self._problem.fits((*kept, model)):
                    found.append(mask)
        return tuple(found)


# ---- the lower bound


class _Interval(msgspec.Struct):
    """Keeping `model` over the requests `first`..`last` between two of its own saves `cost`."""

    cost: float
    bytes: Mapping[str, int]
    first: int
    last: int


def bound(problem: Problem, steps: int = MOST_STEPS) -> float:
    """Seconds that no schedule can undercut. Work: `steps` times requests."""
    order = problem.collapsed()
    intervals, compulsory = _intervals(problem, order)
    rooms = {device: _rooms(problem, order, device) for device in problem.capacity}
    scale = {device: float(max(1, room)) for device, room in problem.capacity.items()}
    prices = {device: [0.0] * len(order) for device in rooms}
    top = max(0.0, furthest_first(problem) - compulsory)
    best, eagerness, idle = 0.0, 1.0, 0
    for _ in range(steps):
        value, slope = _dual(intervals, rooms, scale, prices)
        idle = 0 if value > best + 1e-9 else idle + 1
        best = max(best, value)
        norm = sum(s * s for slopes in slope.values() for s in slopes)
        if norm <= 1e-12 or best >= top:
            break
        if idle >= PATIENCE:
            eagerness, idle = eagerness / 2, 0
        stride = eagerness * (top - value) / norm
        for device, slopes in slope.items():
            prices[device] = [max(0.0, p + stride * s) for p, s in zip(prices[device], slopes, strict=True)]
    return compulsory + min(best, top)


def _rooms(problem: Problem, order: Sequence[str], device: str) -> list[int]:
    """What others can hold beside each request's model: no more than the fullest set of whole models that fits."""
    sizes = {model: problem.bytes[model].get(device, 0) for model in set(order)}
    unit = max(1, gcd(*sizes.values()))
    rooms = {}
    for model, size in sizes.items():
        free = max(0, problem.capacity[device] - size) // unit
        if free > MOST_UNITS:
            rooms[model] = free * unit
            continue
        sums = 1  # bit n: some set holds n units
        for other, held in sizes.items():
            sums |= sums << held // unit if other != model else 0
            sums &= (1 << free + 1) - 1
        rooms[model] = (sums.bit_length() - 1) * unit
    return [rooms[model] for model in order]


def furthest_first(problem: Problem) -> float:
    """Seconds of a good schedule that knows the future (Belady, by time to the next use): what a bound may reach."""
    order = problem.collapsed()
    coming: dict[str, list[int]] = {}
    for at in reversed(range(len(order))):
        coming.setdefault(order[at], []).append(at)
    held: list[str] = []
    paid = 0.0
    for model in order:
        coming[model].pop()
        if model in held:
            continue
        paid += problem.cost[model]
        while not problem.fits((*held, model)):
            held.remove(max(held, key=lambda m: coming[m][-1] if coming[m] else len(order)))
        held.append(model)
    return paid


def _intervals(problem: Problem, order: Sequence[str]) -> tuple[list[_Interval], float]:
    """All intervals, and what first restores cost in any case."""
    last: dict[str, int] = {}
    found: list[_Interval] = []
    compulsory = 0.0
    for at, model in enumerate(order):
        if model in last:
            found.append(_Interval(problem.cost[model], problem.bytes[model], last[model] + 1, at - 1))
        else:
            compulsory += problem.cost[model]
        last[model] = at
    return found, compulsory


def _dual(
    intervals: list[_Interval],
    rooms: Mapping[str, list[int]],
    scale: Mapping[str, float],
    prices: Mapping[str, list[float]],
) -> tuple[float, dict[str, list[float]]]:
    """The dual's value at `prices` (seconds for the whole device at a request), and a subgradient."""
    sums = {device: _prefix(held) for device, held in prices.items()}
    change = {device: [0.0] * (len(held) + 1) for device, held in prices.items()}
    value = 0.0
    for each in intervals:
        rent = sum(
            taken / scale[device] * (sums[device][each.last + 1] - sums[device][each.first])
            for device, taken in each.bytes.items()
        )
        value += min(each.cost, rent)
        if rent < each.cost:
            for device, taken in each.bytes.items():
                change[device][each.first] += taken / scale[device]
                change[device][each.last + 1] -= taken / scale[device]
    slope = {}
    for device, room in rooms.items():
        free = [r / scale[device] for r in room]
        value -= sum(p * f for p, f in zip(prices[device], free, strict=True))
        used = _prefix(change[device])[1:-1]
        slope[device] = [u - f for u, f in zip(used, free, strict=True)]
    return value, slope


def _prefix(values: Sequence[float]) -> list[float]:
    total, sums = 0.0, [0.0]
    for value in values:
        total += value
        sums.append(total)
    return sums
