"""Fleets of any size in virtual time (`coordinator/simulate`), with every call of the real scheduler timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

import msgspec

from coordinator.core.commands import Command, Grant
from coordinator.core.events import Event
from coordinator.core.policies.registry import DEFAULT, make
from coordinator.simulate.fleet import Device, Duration, Fleet, Model, Size
from coordinator.simulate.trace import Request
from coordinator.simulate.world import World

PER_DEVICE = 10
GB = 10**9


class Spent(msgspec.Struct):
    """What `Scheduler.handle` took: seconds of each call that ended in a grant, of all calls together, and how many
    these were. The first two calls, which take in the whole fleet, are not in it."""

    decisions: list[float] = []
    seconds: float = 0.0
    events: int = 0
    wall: float = 0.0
    requests: int = 0
    switches: int = 0
    unanswered: int = 0


def fleet(engines: int) -> Fleet:
    """Ten engines of 16 GB on each device of 40: two of them fit."""
    devices = [Device(f"n{n // 8}/{n % 8}", Size(40 * GB)) for n in range(-(-engines // PER_DEVICE))]
    models = {
        f"m{n}": Model(weights=Size(16 * GB), kv=Size(GB), devices=[devices[n // PER_DEVICE].id], fixed=Duration(0.1))
        for n in range(engines)
    }
    return Fleet(devices, models)


def requests(engines: int, count: int, span: float, seed: int) -> list[Request]:
    """`count` requests within `span` seconds for the first `engines` models, evenly likely for each: the least that a
    policy can make of it."""
    rng = Random(f"coordinator:{engines}:{seed}")
    times = sorted(rng.uniform(0.0, span) for _ in range(count))
    return [Request(round(t, 3), f"m{rng.randrange(engines)}", 200, 40) for t in times]


def run(engines: int, asked: list[Request], progress: Callable[[int], None] | None = None) -> Spent:
    world = World(fleet(engines), asked, make(DEFAULT))
    spent = Spent(requests=len(asked))
    scheduler = world._scheduler
    handle = scheduler.handle
    taken_in = 0

    def timed(event: Event, now: float) -> list[Command]:
        nonlocal taken_in
        begun = time.perf_counter()
        commands = handle(event, now)
        seconds = time.perf_counter() - begun
        taken_in += 1
        if taken_in > 2:
            spent.events += 1
            spent.seconds += seconds
            if any(isinstance(command, Grant) for command in commands):
                spent.decisions.append(seconds)
        return commands

    scheduler.handle = timed  # type: ignore[method-assign]
    begun = time.perf_counter()
    world.run(progress)
    spent.wall = time.perf_counter() - begun
    spent.switches = len(world.moves)
    spent.unanswered = sum(job.ended is None for job in world.jobs)
    return spent
