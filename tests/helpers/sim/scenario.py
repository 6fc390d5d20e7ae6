"""A seed becomes a history: a fleet, clients, operators and faults; then healing, and the verdict."""

from __future__ import annotations

from random import Random

import msgspec

from coordinator.core.model import Bytes, Order, Phase, Policy
from coordinator.core.settings import Settings
from tests.helpers.sim.daemon import Violated
from tests.helpers.sim.engine import Kind
from tests.helpers.sim.world import SETTINGS, World

SETTLE_S = 240.0


def fleet(seed: int) -> World:
    """One to three devices on one or two nodes, three to six models, some of them groups."""
    rng = Random(seed ^ 0x5EED)
    devices = [f"n{rng.randrange(2)}/{number}" for number in range(rng.choice((1, 1, 2, 3)))]
    capacity = {device: rng.choice((60, 100, 140)) for device in devices}
    kinds = []
    models: dict[str, Settings] = {}
    for number in range(rng.randint(3, 6)):
        group = rng.sample(devices, k=min(len(devices), rng.choice((1, 1, 1, 2))))
        most = min(capacity[device] for device in group)
        footprint = Bytes(weights=rng.randint(8, most // 2), kv=rng.randint(0, most // 4))
        kind = Kind(f"m{number}", tuple(sorted(group)), footprint, boot_s=rng.uniform(0.5, 4.0))
        kinds.append(kind)
        models[kind.model] = Settings(
            priority=rng.choice((0, 0, 0, 5, -5)),
            keep_alive=rng.choice((None, 0.0, 5.0, 40.0)),
            min_residency=rng.choice((0.5, 1.0, 2.0)),
        )
    if len(devices) > 1 and rng.random() < 0.4:
        kinds.append(_replica(kinds[0], devices, capacity))
    if rng.random() < 0.5:  # another model of the same weights on the same device
        kinds[0] = msgspec.structs.replace(kinds[0], digest="same")
        kinds.append(msgspec.structs.replace(kinds[0], model="twin", name=""))
    return World(seed, capacity, kinds, models=models, settings=SETTINGS)


def _replica(kind: Kind, devices: list[str], capacity: dict[str, int]) -> Kind:
    """A second engine of the same model, elsewhere if it can be."""
    fits = [device for device in devices if kind.footprint.total + 2 * 4 <= capacity[device]]
    elsewhere = [device for device in fits if device not in kind.devices]
    return msgspec.structs.replace(kind, name=f"{kind.model}-2", devices=tuple((elsewhere or fits or kind.devices)[:1]))


def live(world: World, seconds: float, *, faults: bool) -> None:
    """Clients all the time; with `faults`, something breaks every few seconds."""
    rng = world.rng
    end = world.clockwork.now + seconds
    fault_at = world.clockwork.now + rng.expovariate(0.4)
    hot = rng.sample(world.served, k=2)
    while world.clockwork.now < end:
        world.run(rng.expovariate(2.0))
        model = rng.choice(hot if rng.random() < 0.5 else world.served)
        if rng.random() < 0.15:
            world.direct(rng.choice(sorted(world.engines)), rng.uniform(0.05, 3.0))
        else:
            world.request(model, rng.uniform(0.05, 3.0), rng.randrange(2))
        if rng.random() < 0.02:
            world.ask(model, rng.choice((Order.RESTORE, Order.OFFLOAD)))
        if faults and world.clockwork.now >= fault_at:
            _fault(world, rng)
            fault_at = world.clockwork.now + rng.expovariate(0.4)


def _fault(world: World, rng: Random) -> None:
    engine = world.engines[rng.choice(sorted(world.engines))]
    node = rng.choice(sorted(world.daemons))
    coordinator = rng.choice(world.coordinators)
    match rng.randrange(12):
        case 0 | 1 if engine.alive:
            world.crash(engine)
        case 2 | 3 if engine.alive and not engine.process.frozen:
            world.hang(engine, rng.choice((0.5, 4.0, 7.0, 30.0, float("inf"))))
        case 4 | 5 if engine.alive:
            world.expire(engine)
        case 6:
            world.restart_daemon(node, rng.choice((0.1, 2.0, 10.0)))
        case 7:
            world.change_leader(rng.choice((0.0, 1.0, 8.0)))
        case 8:
            world.daemons[node].denials += 1
            world.say(f"daemon {node} will deny pages")
        case 9:
            coordinator.away = world.clockwork.now + rng.uniform(0.1, 5.0)
        case 10:
            coordinator.lossy = world.clockwork.now + rng.uniform(0.1, 5.0)
        case 11 if rng.random() < 0.3:
            world.lose_store()
        case _:
            world.break_watch(coordinator)


def operators(world: World) -> None:
    """Somebody pins and drains; `undo` takes it back."""
    for model in world.rng.sample(world.served, k=2):
        world.policy(model, world.rng.choice((Policy(pin=True), Policy(drained=True), Policy(min_residency=0.2))))


def history(seed: int, *, faults: bool = True, seconds: float = 60.0) -> World:
    """The whole history of a seed. Raises Violated with its story when anything is not as it must be."""
    world = fleet(seed)
    try:
        world.run(world.rng.uniform(0.0, 20.0))
        if seed % 3 == 0:
            operators(world)
        live(world, seconds, faults=faults)
        world.heal()
        for model in world.served:
            world.policy(model, None)
        world.run(SETTLE_S)
        settled(world)
        probe(world)
    except Exception as error:
        story = "\n".join(world.story[-60:])
        raise Violated(f"seed {seed}: {error}\n{story}") from error
    return world


def settled(world: World) -> None:
    """Once nothing breaks any more, nothing waits and nothing is left open."""
    wrong = world.verdict()
    if wrong:
        raise Violated("; ".join(wrong[:5]))


def probe(world: World) -> None:
    """Every model serves a request that comes now (I5)."""
    requests = [world.request(model, 0.1) for model in world.served]
    world.run(SETTLE_S)
    for request in requests:
        if request.ended != "served":
            raise Violated(f"I5: {request.model} is not served: {request.ended or 'still waits'}")
    settled(world)
    for engine in world.engines.values():
        if engine.phase not in (Phase.RESIDENT, Phase.OFFLOADED):
            raise Violated(f"{engine.holder.engine} rests in {engine.phase}")
