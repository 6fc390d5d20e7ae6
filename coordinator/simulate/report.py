"""What a run cost and how it felt, by policy, beside the offline optimum."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import ceil

import msgspec

from coordinator.core.model import Order
from coordinator.simulate.engine import Job
from coordinator.simulate.fleet import Fleet
from coordinator.simulate.optimum import Optimum, Problem, optimum
from coordinator.simulate.world import Move, World

THRASH_S = 30.0
"""A model that must come back so soon left in vain."""


class Outcome(msgspec.Struct, frozen=True):
    """One policy on one trace. Seconds, bytes. `cost_s`: restore seconds during which a request waited for the restore.

    `hit_rate`: requests whose model was resident when they came. `slo`: requests whose first token came within their
    model's `ttft_objective`; None: no model has one. `thrash`: restores of models that had left within `THRASH_S`.
    `ratio`: cost to the optimum, at least 1 by definition; `max_wait_s`: longest time to a first token.
    `predicted`: restores nobody had asked for; `regretted`: those that left again unused."""

    policy: str
    cost_s: float
    ratio: float
    requests: int
    unanswered: int
    restores: int
    hit_rate: float
    ttft_warm_p50: float
    ttft_warm_p99: float
    ttft_cold_p50: float
    ttft_cold_p99: float
    slo: float | None
    swaps_per_hour: float
    bytes_moved: int
    thrash: int
    max_wait_s: float
    predicted: int = 0
    regretted: int = 0


class Comparison(msgspec.Struct, frozen=True):
    """`optimum_s` is exact, or (not `exact`) proven not to be more than the optimum."""

    seconds: float
    requests: int
    optimum_s: float
    exact: bool
    outcomes: list[Outcome]


def compare(fleet: Fleet, runs: Sequence[tuple[str, World]]) -> Comparison:
    """All runs are of the same fleet and trace. Raises ValueError where there is none."""
    best = best_order(fleet, [world for _, world in runs])
    jobs = runs[0][1].jobs
    return Comparison(
        seconds=jobs[-1].request.t if jobs else 0.0,
        requests=len(jobs),
        optimum_s=best.seconds,
        exact=best.exact,
        outcomes=[outcome(name, fleet, world, best) for name, world in runs],
    )


def best_order(fleet: Fleet, worlds: Sequence[World]) -> Optimum:
    """The optimum serves in one order. Taken is the cheapest of: the order of arrival, and the orders in which these
    runs served; so a policy that batches is not compared with an optimum that may not."""
    arrived = tuple(job.request.model for job in worlds[0].jobs)
    orders = {arrived, *(tuple(world.served) for world in worlds if len(world.served) == len(arrived))}
    return min((optimum(problem(fleet, order)) for order in sorted(orders)), key=lambda found: found.seconds)


def problem(fleet: Fleet, order: Iterable[str]) -> Problem:
    """The caching problem behind a fleet and an order of service."""
    return Problem(
        order=tuple(order),
        cost={name: fleet.restore_s(name) for name in fleet.models},
        bytes={name: {d: fleet.pages(name, d) for d in model.devices} for name, model in fleet.models.items()},
        capacity={device.id: device.capacity for device in fleet.devices},
    )


def outcome(policy: str, fleet: Fleet, world: World, best: Optimum) -> Outcome:
    """What one run comes to."""
    jobs, moves = world.jobs, world.moves
    restores = [move for move in moves if move.order is Order.RESTORE]
    span = max(world.clock.now, 1.0)
    cost = sum(move.waited for move in restores)
    return Outcome(
        policy=policy,
        cost_s=cost,
        ratio=cost / best.seconds if best.seconds > 0 else 1.0,
        requests=len(jobs),
        unanswered=sum(job.ended is None for job in jobs),
        restores=len(restores),
        hit_rate=sum(not job.cold for job in jobs) / max(1, len(jobs)),
        ttft_warm_p50=_quantile(_ttft(jobs, cold=False), 0.5),
        ttft_warm_p99=_quantile(_ttft(jobs, cold=False), 0.99),
        ttft_cold_p50=_quantile(_ttft(jobs, cold=True), 0.5),
        ttft_cold_p99=_quantile(_ttft(jobs, cold=True), 0.99),
        slo=_slo(fleet, jobs),
        swaps_per_hour=(len(moves) - len(restores)) / span * 3600,
        bytes_moved=sum(move.bytes for move in moves),
        thrash=_thrash(moves),
        max_wait_s=max((job.ttft for job in jobs if job.ttft is not None), default=0.0),
        predicted=world.predicted,
        regretted=world.regretted,
    )


def _ttft(jobs: Iterable[Job], *, cold: bool) -> list[float]:
    return sorted(job.ttft for job in jobs if job.ttft is not None and job.cold is cold)


def _quantile(ordered: Sequence[float], q: float) -> float:
    """Nearest rank; 0 of nothing."""
    return ordered[max(0, ceil(q * len(ordered)) - 1)] if ordered else 0.0


def _slo(fleet: Fleet, jobs: Iterable[Job]) -> float | None:
    kept = []
    for job in jobs:
        objective = fleet.models[job.request.model].ttft_objective
        if objective is not None:
            kept.append(job.ttft is not None and job.ttft <= objective)
    return sum(kept) / len(kept) if kept else None


def _thrash(moves: Iterable[Move]) -> int:
    left: dict[str, float] = defaultdict(lambda: float("-inf"))
    count = 0
    for move in moves:
        if move.order is Order.OFFLOAD:
            left[move.model] = move.at
        elif move.at - left[move.model] < THRASH_S:
            count += 1
    return count
