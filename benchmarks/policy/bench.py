"""One trace under several policies, and what all traces come to."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec

from benchmarks.figures import RESAMPLES, Ratio
from coordinator.core.policies.registry import make
from coordinator.simulate.generate import workload
from coordinator.simulate.report import compare
from coordinator.simulate.world import World

Sample = TypeVar("Sample")
OURS, PEER = "cost_aware+predict", "lru"
NAMES = (OURS, "cost_aware", PEER)


class Trace(msgspec.Struct, frozen=True):
    """What each policy cost on one trace, in seconds, and the optimum."""

    family: str
    seed: int
    optimum: float
    exact: bool
    density: float
    cost: dict[str, float]

    def ratio(self, policy: str) -> float:
        return self.cost[policy] / self.optimum

    @property
    def excess(self) -> float | None:
        """Our excess over the optimum as a share of LRU's; None: LRU has hardly any."""
        peer = self.cost[PEER] - self.optimum
        return (self.cost[OURS] - self.optimum) / peer if peer > 0.01 * self.optimum else None


def judge(name: tuple[str, int], *, remains: bool = False) -> Trace:
    """One trace through the real scheduler, once for each policy. `remains`: who comes back to pages that nobody has
    needed since does not copy them, as node daemons have it; the optimum copies all."""
    family, seed = name
    work = workload(family, seed)
    runs = []
    for policy in NAMES:
        name_, _, predict = policy.partition("+")
        world = World(work.fleet, work.requests, make(name_), predict=bool(predict), remains=remains)
        world.run()
        runs.append((policy, world))
    found = compare(work.fleet, runs)
    device = work.fleet.devices[0]
    held = sum(work.fleet.pages(model, device.id) for model in work.fleet.models)
    cost = {outcome.policy: outcome.cost_s for outcome in found.outcomes}
    return Trace(family, seed, found.optimum_s, found.exact, held / device.capacity, cost)


def ratios(traces: Sequence[Trace]) -> dict[str, Ratio]:
    """The figures of `goals`, with bootstrap intervals over traces."""
    ours = [trace.ratio(OURS) for trace in traces]
    excess = [share for trace in traces if (share := trace.excess) is not None]
    return {
        "cost_over_opt_mean": _bootstrap(ours, statistics.fmean),
        "cost_over_opt_worst": Ratio(max(ours), (max(ours), max(ours)), len(ours)),
        "excess_over_lru_excess": _bootstrap(excess, statistics.fmean),
        "worst_family_over_lru": _worst_family(traces),
    }


def values(traces: Sequence[Trace]) -> dict[str, float]:
    """What stands behind them: conditions of the traces, every policy's mean, every family's ratio to LRU."""
    found = {
        "density_least": min(trace.density for trace in traces),
        "exact_share": statistics.fmean(trace.exact for trace in traces),
        "excess_total_over_lru": _total(traces, OURS) / _total(traces, PEER),
    }
    for policy in NAMES:
        found[f"{policy}_over_opt_mean"] = statistics.fmean(trace.ratio(policy) for trace in traces)
        found[f"{policy}_over_opt_worst"] = max(trace.ratio(policy) for trace in traces)
    for family, mine in by_family(traces).items():
        found[f"{family}_over_lru"] = sum(t.cost[OURS] for t in mine) / sum(t.cost[PEER] for t in mine)
        found[f"{family}_unpredicted_over_lru"] = sum(t.cost["cost_aware"] for t in mine) / sum(
            t.cost[PEER] for t in mine
        )
        found[f"{family}_over_opt_mean"] = statistics.fmean(trace.ratio(OURS) for trace in mine)
    return found


def by_family(traces: Iterable[Trace]) -> dict[str, list[Trace]]:
    found: dict[str, list[Trace]] = {}
    for trace in traces:
        found.setdefault(trace.family, []).append(trace)
    return found


def _total(traces: Sequence[Trace], policy: str) -> float:
    return sum(trace.cost[policy] - trace.optimum for trace in traces)


def _worst_family(traces: Sequence[Trace]) -> Ratio:
    def of(pairs: Sequence[tuple[float, float]]) -> float:
        return sum(ours for ours, _ in pairs) / sum(peer for _, peer in pairs)

    families = [[(t.cost[OURS], t.cost[PEER]) for t in mine] for mine in by_family(traces).values()]
    return _bootstrap(max(families, key=of), of)


def _bootstrap(samples: Sequence[Sample], figure: Callable[[Sequence[Sample]], float]) -> Ratio:
    draw = random.Random(0)
    drawn = sorted(figure(draw.choices(samples, k=len(samples))) for _ in range(RESAMPLES))
    low, high = drawn[int(0.025 * RESAMPLES)], drawn[int(0.975 * RESAMPLES)]
    return Ratio(figure(samples), (low, high), len(samples))
