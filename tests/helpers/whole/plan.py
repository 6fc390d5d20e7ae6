"""A seed becomes a plan, a list of what clients, operators and faults do and when; a plan becomes a history."""

from __future__ import annotations

import asyncio
from random import Random

import msgspec

from coordinator.core.model import Policy
from tests.helpers.whole.acts import Act, perform
from tests.helpers.whole.engine import Kind
from tests.helpers.whole.machine import Violated
from tests.helpers.whole.stage import staged
from tests.helpers.whole.world import LATE_S, SETTINGS, World

LIVE_S = 6.0
SETTLE_S = 120.0
HEARD_S = 1.0
"""After that everybody has heard what operators have taken back: a request that comes before may still be refused."""
PROBE_S = 60.0
HOT_S = 0.4

FAULTS = (
    *("kill engine", "kill engine", "stop engine", "stop engine", "expire lease", "expire lease", "kill daemon"),
    *("kill daemon", "stop daemon", "kill leader", "stop leader", "bad network", "bad network", "fuse", "fuse", "fuse"),
    *("compact", "cut watches", "lose data", "restart etcd", "set the clock", "deny pages", "full disk", "partition"),
)

WEDGE = "wedge"
"""A fault for some seeds alone: it takes until its order's limit, and that is long."""


class Plan(msgspec.Struct, frozen=True):
    """A history to be: the fleet is the seed's, the acts may be fewer than the seed's."""

    seed: int
    acts: tuple[Act, ...]
    note: str = ""


def fleet(seed: int) -> World:
    """One or two devices on one node, or one on each of two; three to five models, some of them groups."""
    rng = Random(seed ^ 0x5EED)
    nodes = rng.choice(
        ({"n0": ("0",)}, {"n0": ("0",)}, {"n0": ("0", "1")}, {"n0": ("0", "1")}, {"n0": ("0",), "n1": ("0",)})
    )
    sized = {node: {id_: rng.randint(4, 8) for id_ in ids} for node, ids in nodes.items()}
    kinds = [_kind(rng, number, sized) for number in range(rng.randint(3, 4))]
    if rng.random() < 0.2:
        kinds.append(msgspec.structs.replace(kinds[0], name=f"{kinds[0].model}-2"))
    models = {
        kind.model: msgspec.structs.replace(
            SETTINGS,
            priority=rng.choice((0, 0, 5, -5)),
            keep_alive=rng.choice((None, 0.0, 4.0, 20.0)),
            min_residency=rng.choice((0.2, 0.5, 1.0)),
        )
        for kind in kinds
    }
    return World(seed, sized, kinds, models)


def _kind(rng: Random, number: int, nodes: dict[str, dict[str, int]]) -> Kind:
    node = rng.choice(sorted(nodes))
    ids = sorted(nodes[node])
    group = ids if len(ids) > 1 and rng.random() < 0.4 else [rng.choice(ids)]
    most = min(nodes[node][id_] for id_ in group)
    weights = rng.randint(1, max(1, most - 2))
    return Kind(
        model=f"m{number}",
        name=f"m{number}",
        devices=tuple(f"{node}/{id_}" for id_ in group),
        weights=weights,
        kv=rng.randint(0, min(2, most - weights)),
        boot_s=rng.uniform(0.2, 1.0),
        copy_s=rng.uniform(0.05, 0.3),
        gated=rng.random() < 0.5,
    )


def planned(seed: int, *, faults: bool = True) -> Plan:
    """All acts of a seed."""
    rng = Random(seed ^ 0xACE)
    acts = []
    at = 0.0
    hot = rng.randrange(8)
    while at < LIVE_S:
        at += rng.expovariate(3.5)
        whom = hot if rng.random() < 0.4 else rng.randrange(8)
        acts.append(Act(at, "request", whom, rng.choice((0.1, 0.3, 1.0)), rng.randrange(2)))
        if rng.random() < 0.1:
            acts.append(Act(at + rng.uniform(0.0, 1.0), "leave", rng.randrange(8)))
    at = rng.uniform(0.3, 1.5)
    while faults and at < LIVE_S:
        acts.append(Act(at, rng.choice(FAULTS), rng.randrange(8), rng.choice((0.1, 0.5, 2.5, 5.0)), rng.randrange(40)))
        at += rng.expovariate(1.0)
    if seed % 3 == 0:
        acts.append(Act(rng.uniform(0.0, 3.0), "pin", rng.randrange(8)))
        acts.append(Act(rng.uniform(2.0, LIVE_S), "drain", rng.randrange(8)))
        acts.append(Act(rng.uniform(2.0, LIVE_S), "ask", rng.randrange(8), more=rng.randrange(2)))
    if faults and seed % 8 == 5:
        acts.append(Act(rng.uniform(0.5, 3.0), WEDGE, hot))
    return Plan(seed, tuple(sorted(acts, key=lambda act: act.at)))


def history(plan: Plan) -> World:
    """The whole history of a plan. Raises Violated."""
    world = fleet(plan.seed)
    with staged(world):

        async def script(world: World) -> None:
            for act in plan.acts:
                await asyncio.sleep(max(0.0, act.at - world.loop.time()))
                perform(world, act)
            heal(world)
            await asyncio.sleep(HEARD_S)
            await settled(world)
            if plan.seed % 9 == 0:
                await spare(world)
            await probe(world)

        try:
            world.live(script)
        finally:
            world.faults = sum(act.what in (*FAULTS, WEDGE) for act in plan.acts)
    return world


def heal(world: World) -> None:
    """No fault any more: who was stopped goes on, who is away comes back."""
    world.rough = False
    for engine in world.engines.values():
        world.loop.go_on(engine.proc)
        engine.wedged = False
        _mend(engine.store)
    for daemon in world.daemons.values():
        daemon.denials = 0
        daemon.journal.failing = False
        world.loop.go_on(daemon.proc)
        daemon.start()
        _mend(daemon.store)
    if not world.etcd.running:
        world.etcd.start()
    for coordinator in world.coordinators:
        world.loop.go_on(coordinator.proc)
        if coordinator.proc.dead:
            coordinator.start()
        _mend(coordinator.store)
    for model in world.models:
        world.policy(model, None)
    world.healed, world.healed_at = world.etcd.mvcc.revision, world.loop.time()
    world.say("healed")


def _mend(store: object) -> None:
    if store is not None:
        store.bad_until, store.fuse = 0.0, 0  # type: ignore[attr-defined]
        store.heal()  # type: ignore[attr-defined]


async def settled(world: World) -> None:
    """Once nothing breaks any more, nothing waits and nothing stays open."""
    end = world.loop.time() + SETTLE_S
    while wrong := world.verdict():
        if world.loop.time() > end or (late := world.overdue()):
            raise Violated("I5: " + "; ".join([*late, *wrong][:5]))
        await asyncio.sleep(0.5)


async def spare(world: World) -> None:
    """A pinned model stays where any other would leave as soon as it is idle (judged where it is ordered to leave)."""
    model = next((name for name in sorted(world.models) if world.models[name].keep_alive == 0.0), None)
    if model is None:
        return
    await asyncio.sleep(max(0.0, world.healed_at + LATE_S - world.loop.time()))
    world.policy(model, Policy(pin=True))
    await asyncio.sleep(HEARD_S)
    request = world.request(model, 0.1, 0, PROBE_S)
    while not request.ended:
        if world.loop.time() > request.born + PROBE_S:
            raise Violated(f"I5: {model} is not served though it is pinned")
        await asyncio.sleep(0.1)
    await asyncio.sleep(world.models[model].min_residency + 1.0)
    world.policy(model, None)
    await asyncio.sleep(HEARD_S)


async def probe(world: World) -> None:
    """Every model is served within a bound, while a hot pair is asked for all the time (I5); then all is quiet."""
    models = sorted(world.models)
    requests = [world.request(model, 0.1, number, PROBE_S) for number, model in enumerate(models)]
    end = world.loop.time() + PROBE_S
    hot = models[:2]
    while not all(request.ended for request in requests) and world.loop.time() < end:
        for number, model in enumerate(hot):
            world.request(model, 0.1, number, PROBE_S)
        await asyncio.sleep(HOT_S)
    for request in requests:
        if request.ended != "served":
            raise Violated(f"I5: {request.model} is not served: {request.ended or 'still waits'}")
    await settled(world)
