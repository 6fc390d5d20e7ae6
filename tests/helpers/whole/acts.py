"""What an act of a plan does to the world: one short function for each kind, found by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

import msgspec

from coordinator.core.events import OrderAsked
from coordinator.core.model import ModelId, Order, Policy
from coordinator.errors import Compacted
from tests.helpers.whole.coordinator import SimCoordinator
from tests.helpers.whole.daemon import SimDaemon
from tests.helpers.whole.engine import SimEngine
from tests.helpers.whole.loop import Proc
from tests.helpers.whole.network import SimStore
from tests.helpers.whole.world import World


class Act(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that happens. `whom`: an index, taken modulo what there is. `much`: seconds, or a number."""

    at: float
    what: str
    whom: int = 0
    much: float = 0.0
    more: int = 0


class Scene:
    """An act, and whom it means as the world is now."""

    def __init__(self, world: World, act: Act) -> None:
        self.world = world
        self.act = act

    @property
    def engine(self) -> SimEngine:
        engines = self.world.engines
        return engines[sorted(engines)[self.act.whom % len(engines)]]

    @property
    def model(self) -> str:
        return self.engine.kind.model

    @property
    def daemon(self) -> SimDaemon:
        daemons = self.world.daemons
        return daemons[sorted(daemons)[self.act.whom % len(daemons)]]

    @property
    def leader(self) -> SimCoordinator:
        """Where nobody leads, one of them."""
        coordinators = self.world.coordinators
        return next((each for each in coordinators if each.leading), coordinators[self.act.whom % 2])

    @property
    def store(self) -> SimStore | None:
        """Somebody's connection to etcd; None while that process is away."""
        world = self.world
        stores = [each.store for each in (*world.engines.values(), *world.daemons.values(), *world.coordinators)]
        return stores[self.act.more % len(stores)]

    def later(self, seconds: float, act: Callable[..., object], *args: object) -> None:
        self.world.loop.call_later(seconds, act, *args)


def perform(world: World, act: Act) -> None:
    """What an act does. Raises KeyError for one that is not known."""
    if act.what not in _QUIET:
        world.say(f"{act.what} {act.whom} {act.much} {act.more}")
    _ACTS[act.what](Scene(world, act))


# ---- clients and operators


def _request(scene: Scene) -> None:
    scene.world.request(scene.model, scene.act.much, scene.act.more, patience=30.0)


def _leave(scene: Scene) -> None:
    waiting = [(each, request) for each in scene.world.coordinators for request in each.handling]
    if waiting:
        coordinator, request = waiting[scene.act.whom % len(waiting)]
        coordinator.hang_up(request)


def _policy(scene: Scene, policy: Policy) -> None:
    scene.world.policy(scene.model, policy)


def _ask(scene: Scene) -> None:
    runtime = scene.leader.runtime
    if runtime is not None:
        runtime.order(OrderAsked(ModelId(scene.model), Order.OFFLOAD if scene.act.more else Order.RESTORE))


# ---- processes


def _stop(scene: Scene, proc: Proc, seconds: float) -> None:
    proc.stopped = True
    scene.later(seconds, scene.world.loop.go_on, proc)


def _kill_engine(scene: Scene) -> None:
    scene.world.crash(scene.engine)


def _stop_engine(scene: Scene) -> None:
    if scene.engine.alive:
        _stop(scene, scene.engine.proc, scene.act.much * 2)


def _wedge(scene: Scene) -> None:
    scene.engine.wedged = True


def _kill_daemon(scene: Scene) -> None:
    scene.daemon.kill()
    scene.later(scene.act.much, scene.daemon.start)


def _stop_daemon(scene: Scene) -> None:
    _stop(scene, scene.daemon.proc, scene.act.much)


def _kill_leader(scene: Scene) -> None:
    leader = scene.leader
    leader.kill()
    scene.later(scene.act.much, leader.start)


def _stop_leader(scene: Scene) -> None:
    _stop(scene, scene.leader.proc, scene.act.much * 2)


def _set_the_clock(scene: Scene) -> None:
    scene.world.wall_ahead = (scene.act.more - 20) * 100.0


# ---- the network and etcd


def _expire_lease(scene: Scene) -> None:
    engine = scene.engine
    if engine.agent is not None and engine.agent._life.lease is not None:
        engine.store._revoke(engine.agent._life.lease)


def _bad_network(scene: Scene) -> None:
    if scene.store is not None:
        scene.store.bad_until = scene.world.loop.time() + scene.act.much


def _fuse(scene: Scene) -> None:
    if scene.store is not None:
        scene.store.fuse = 1 + scene.act.whom


def _partition(scene: Scene) -> None:
    if scene.store is not None:
        scene.store.partition()
        scene.later(scene.act.much, scene.store.heal)


def _compact(scene: Scene) -> None:
    with suppress(Compacted):  # again
        scene.world.etcd.compact()
    scene.world.etcd.break_watches()


def _cut_watches(scene: Scene) -> None:
    scene.world.etcd.break_watches()


def _lose_data(scene: Scene) -> None:
    if scene.act.more < 14:
        scene.world.pins.clear()
        scene.world.etcd.lose_data()


def _restart_etcd(scene: Scene) -> None:
    scene.world.etcd.stop()
    scene.later(scene.act.much, scene.world.etcd.start)


# ---- devices and disks


def _deny_pages(scene: Scene) -> None:
    scene.daemon.denials += 1


def _full_disk(scene: Scene) -> None:
    journal = scene.daemon.journal
    journal.failing = True
    scene.later(scene.act.much, setattr, journal, "failing", False)


_QUIET = {"request", "leave"}
_ACTS: Mapping[str, Callable[[Scene], None]] = {
    "request": _request,
    "leave": _leave,
    "pin": partial(_policy, policy=Policy(pin=True)),
    "drain": partial(_policy, policy=Policy(drained=True)),
    "ask": _ask,
    "kill engine": _kill_engine,
    "stop engine": _stop_engine,
    "wedge": _wedge,
    "kill daemon": _kill_daemon,
    "stop daemon": _stop_daemon,
    "kill leader": _kill_leader,
    "stop leader": _stop_leader,
    "set the clock": _set_the_clock,
    "expire lease": _expire_lease,
    "bad network": _bad_network,
    "fuse": _fuse,
    "partition": _partition,
    "compact": _compact,
    "cut watches": _cut_watches,
    "lose data": _lose_data,
    "restart etcd": _restart_etcd,
    "deny pages": _deny_pages,
    "full disk": _full_disk,
}
