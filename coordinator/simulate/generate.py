"""Seeded fleets and traces with the shapes that are published of real ones. A family and a seed give the same, always.

Common to all: heavy-tailed popularity (a few models take most requests, most take next to none: Zipf's law; Aegaeon,
SOSP'25, reports 90 % of models behind 1.35 % of requests), model sizes of common checkpoints, prompt and output lengths
log-normal (BurstGPT, arXiv 2401.17644; Azure LLM inference traces, Splitwise, ISCA'24). Families:

- `tail`: independent Poisson arrivals, popularity alone;
- `bursts`: sessions of a user with one model; gamma-distributed gaps, coefficient of variation above one (BurstGPT);
- `diurnal`: every model's rate follows its own day (Azure LLM traces; "Serverless in the Wild", ATC'20);
- `timers`: about half of the models are called on a timer, with a little jitter (in "Serverless in the Wild" timers are
  the second most common trigger), the rest as in `tail`;
- `chains`: workflows call the same few models one after the other, several rounds (agents, retrieve-rerank-answer).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random

import msgspec

from coordinator.simulate.fleet import Device, Duration, Fleet, Model, Size
from coordinator.simulate.trace import Request

GB = 10**9
CHECKPOINTS_GB = (6, 8, 15, 16, 16, 16, 24, 28, 30)
"""Weights in bfloat16 of 3B, 4B, 7B, 8B, 12B, 14B and 15B models; 8B is the most common."""
DENSITY = (2.0, 2.5)
"""All models together take so many times what the device has."""
Arrivals = Iterator[tuple[float, str]]


class Workload(msgspec.Struct, frozen=True):
    """A fleet and what is asked of it."""

    fleet: Fleet
    requests: list[Request]


def workload(family: str, seed: int, *, requests: int = 200, models: int = 8) -> Workload:
    """One device and `models` models, `requests` requests. Raises KeyError for an unknown family."""
    rng = Random(f"{family}:{seed}")
    fleet = _fleet(rng, models)
    return Workload(fleet, trace(family, rng, sorted(fleet.models), requests))


def trace(family: str, rng: Random, models: list[str], requests: int) -> list[Request]:
    """`requests` requests for `models` in the shape of `family`."""
    order = rng.sample(models, len(models))
    return [_request(rng, t, model) for t, model in islice(FAMILIES[family](rng, order), requests)]


def _fleet(rng: Random, count: int) -> Fleet:
    models = {f"m{n}": _model(rng, rng.choice(CHECKPOINTS_GB)) for n in range(count)}
    total = sum(model.weights + model.kv for model in models.values())
    capacity = Size(int(total / rng.uniform(*DENSITY)))
    return Fleet([Device("n/0", capacity, restore=Size(20 * GB), offload=Size(20 * GB))], models)


def _model(rng: Random, size: int) -> Model:
    return Model(
        weights=Size(size * GB),
        kv=Size(int(size * GB * rng.uniform(0.05, 0.15))),
        devices=["n/0"],
        fixed=Duration(rng.uniform(0.05, 0.3)),
        prefill=60_000.0 / math.sqrt(size),
        decode=Duration(0.004 + size / 4000),
    )


def _request(rng: Random, t: float, model: str) -> Request:
    prompt = min(8000, int(rng.lognormvariate(5.5, 1.0)) + 1)
    return Request(round(t, 3), model, prompt, min(500, int(rng.lognormvariate(3.5, 0.8)) + 1))


# ---- families: endless arrivals in order of time, for models in order of popularity


def _zipf(rng: Random, models: list[str]) -> Callable[[], str]:
    exponent = rng.uniform(0.6, 1.4)
    weights = [1 / (rank + 1) ** exponent for rank in range(len(models))]
    return lambda: rng.choices(models, weights)[0]


def _tail(rng: Random, models: list[str]) -> Arrivals:
    pick, gap, t = _zipf(rng, models), rng.uniform(10.0, 30.0), 0.0
    while True:
        t += rng.expovariate(1 / gap)
        yield t, pick()


def _sessions(rng: Random, starts: Arrivals, follow: Callable[[float, str], list[tuple[float, str]]]) -> Arrivals:
    """Sessions that may overlap, merged in order of time."""
    heap: list[tuple[float, str]] = []
    for t, model in starts:
        while heap and heap[0][0] <= t:
            yield heapq.heappop(heap)
        for arrival in follow(t, model):
            heapq.heappush(heap, arrival)


def _bursts(rng: Random, models: list[str]) -> Arrivals:
    shape, mean, length = rng.uniform(0.3, 0.8), rng.uniform(5.0, 15.0), rng.uniform(3.0, 8.0)
    pick, gap = _zipf(rng, models), rng.uniform(12.0, 40.0)

    def starts() -> Arrivals:
        t = 0.0
        while True:
            t += rng.expovariate(1 / gap)
            yield t, pick()

    def session(t: float, model: str) -> list[tuple[float, str]]:
        arrivals = [(t, model)]
        while rng.random() > 1 / length:
            t += rng.gammavariate(shape, mean / shape)
            arrivals.append((t, model))
        return arrivals

    return _sessions(rng, starts(), session)


def _diurnal(rng: Random, models: list[str]) -> Arrivals:
    """Thinning (Lewis and Shedler 1979): a fifth of a day holds some ten requests."""
    gap = rng.uniform(10.0, 30.0)
    day, swing = 60 * gap, rng.uniform(0.8, 1.0)
    phase = {model: rng.random() for model in models}
    for t, model in _tail(rng, models):
        if rng.random() < (1 + swing * math.sin(2 * math.pi * (t / day + phase[model]))) / 2:
            yield t, model


def _timers(rng: Random, models: list[str]) -> Arrivals:
    timed = rng.sample(models, (len(models) + 1) // 2)
    jitter = rng.uniform(0.0, 0.05)
    heap = [(rng.uniform(0.0, 120.0), model, float(rng.choice((60, 90, 120, 180, 300)))) for model in timed]
    heapq.heapify(heap)
    for t, model in _tail(rng, [model for model in models if model not in timed]):
        while heap[0][0] <= t:
            due, timer, period = heapq.heappop(heap)
            yield due, timer
            heapq.heappush(heap, (due + max(1.0, period * (1 + rng.gauss(0.0, jitter))), timer, period))
        yield t, model


def _chains(rng: Random, models: list[str]) -> Arrivals:
    flows = [rng.sample(models, rng.randint(3, min(5, len(models)))) for _ in range(rng.randint(1, 3))]
    think, rounds, gap = rng.uniform(4.0, 12.0), rng.uniform(2.0, 6.0), rng.uniform(80.0, 200.0)

    def starts() -> Arrivals:
        t, pick = 0.0, _zipf(rng, models)
        while True:
            t += rng.expovariate(1 / gap)
            yield t, ("flow" if rng.random() < 0.6 else pick())

    def session(t: float, model: str) -> list[tuple[float, str]]:
        if model != "flow":
            return [(t, model)]
        arrivals = []
        flow, first = rng.choice(flows), True
        while first or rng.random() > 1 / rounds:
            first = False
            for step in flow:
                arrivals.append((t, step))
                t += rng.gammavariate(4.0, think / 4.0)
        return arrivals

    return _sessions(rng, starts(), session)


FAMILIES: dict[str, Callable[[Random, list[str]], Arrivals]] = {
    "tail": _tail,
    "bursts": _bursts,
    "diurnal": _diurnal,
    "timers": _timers,
    "chains": _chains,
}
