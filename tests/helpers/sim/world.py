"""The whole system around the real scheduler: etcd, daemons, engines, coordinators, clients, faults, invariants.

Everything random comes from one seeded generator, so a seed is a history; policies take turns with the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from coordinator.core.commands import Endpoint, Grant, Reclaim
from coordinator.core.events import LeadershipLost
from coordinator.core.model import Holder, Order, Phase, Policy
from coordinator.core.policies.registry import POLICIES, make
from coordinator.core.scheduler import Scheduler
from coordinator.core.settings import Limits, Settings
from tests.helpers.sim.clockwork import Clockwork
from tests.helpers.sim.coordinator import ELECTION, SimCoordinator
from tests.helpers.sim.daemon import SimDaemon, SimDevice, Violated
from tests.helpers.sim.engine import Kind, Request, SimEngine
from tests.helpers.sim.etcd import Etcd

CHUNK = 4
LIMITS = Limits(restore_s=15.0, offload_s=15.0, startup_s=60.0, reclaim_s=15.0)
SETTINGS = Settings(keep_alive=40.0, min_residency=1.0)


class World:
    """`capacities` by device id (`node/dev`); one engine for each kind."""

    def __init__(
        self,
        seed: int,
        capacities: Mapping[str, int],
        kinds: Sequence[Kind],
        *,
        coordinators: int = 2,
        models: Mapping[str, Settings] | None = None,
        settings: Settings = SETTINGS,
    ) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.clockwork = Clockwork()
        self.etcd = Etcd(self.clockwork, self.rng)
        self.settings = settings
        self.models = dict(models or {})
        self.requests: list[Request] = []
        self.story: list[str] = []
        self.least: dict[str, list[float]] = {}
        """Minimum residencies that operators ever set: the leader sees a change of them late."""
        self.unasked: dict[str, bool] = {}
        """Engines whose last restore nobody had asked for."""
        self.nonces = 0
        nodes: dict[str, list[SimDevice]] = {}
        for id_, capacity in capacities.items():
            nodes.setdefault(id_.partition("/")[0], []).append(SimDevice(id_, capacity, CHUNK))
        self.daemons = {node: SimDaemon(self.clockwork, self.etcd, devices) for node, devices in nodes.items()}
        self.engines: dict[str, SimEngine] = {}
        self.graves: list[SimEngine] = []
        for daemon in self.daemons.values():
            daemon.alive, daemon.kill, daemon.lease_of = self._alive, self._kill, self._lease_of
        for kind in kinds:
            self.spawn(kind)
        self.coordinators = [self._coordinator(f"c{n}") for n in range(coordinators)]
        self.clockwork.after(0.0, self._elect)

    # ---- parts

    def _coordinator(self, id_: str) -> SimCoordinator:
        policy = make(POLICIES[self.seed % len(POLICIES)])
        scheduler = Scheduler(self.settings, self.models, limits=LIMITS, policy=policy, predict=self.seed % 2 == 0)
        return SimCoordinator(self.clockwork, self.etcd, id_, scheduler, self._admit, self._on_grant, self._ended)

    def spawn(self, kind: Kind) -> SimEngine:
        self.nonces += 1
        engine = SimEngine(self.clockwork, self.etcd, self.daemon_of, kind.engine, f"n{self.nonces}", kind, self._ended)
        self.engines[kind.engine] = engine
        return engine

    @property
    def served(self) -> list[str]:
        """All models."""
        return sorted({engine.kind.model for engine in self.engines.values()})

    def daemon_of(self, device: str) -> SimDaemon:
        return self.daemons[device.partition("/")[0]]

    def device(self, id_: str) -> SimDevice:
        return self.daemon_of(id_).devices[id_]

    @property
    def leader(self) -> SimCoordinator | None:
        """Who truly leads."""
        row = self.etcd.rows.get((ELECTION,))
        return next((each for each in self.coordinators if row is not None and row.value == each.id), None)

    def _process(self, holder: Holder) -> SimEngine | None:
        found = [*self.engines.values(), *self.graves]
        return next((engine for engine in found if engine.holder == holder), None)

    def _alive(self, holder: Holder) -> bool:
        engine = self._process(holder)
        return engine is not None and engine.alive

    def _lease_of(self, holder: Holder) -> int:
        engine = self._process(holder)
        return engine.lease if engine is not None else 0

    def _kill(self, holder: Holder) -> None:
        engine = self._process(holder)
        if engine is not None and engine.alive:
            self.say(f"daemon kills {holder.engine}")
            self.crash(engine)

    def _admit(self, endpoint: Endpoint, request: Request) -> bool:
        engine = self.engines.get(endpoint.engine)
        if engine is None or not engine.alive or endpoint.url != f"http://{endpoint.engine}":
            return False
        engine.admit(request)
        return True

    def _ended(self, request: Request, how: str) -> None:
        if request.ended:
            raise Violated(f"I2: a request for {request.model} ended twice: {request.ended}, {how}")
        request.ended = how

    def say(self, text: str) -> None:
        self.story.append(f"{self.clockwork.now:8.3f} {text}")

    # ---- clients, operators, faults

    def request(self, model: str, work: float = 0.2, gateway: int = 0) -> Request:
        """A client's request through a gateway."""
        request = Request(model, self.clockwork.now, work)
        self.requests.append(request)
        self.coordinators[gateway % len(self.coordinators)].request(request)
        return request

    def direct(self, id_: str, work: float = 0.2) -> None:
        """A client's request to the engine's own port."""
        engine = self.engines[id_]
        if engine.alive:
            request = Request(engine.kind.model, self.clockwork.now, work)
            self.requests.append(request)
            engine.admit(request)

    def policy(self, model: str, policy: Policy | None) -> None:
        if policy is not None and policy.min_residency is not None:
            self.least.setdefault(model, []).append(policy.min_residency)
        self.etcd.txn([(("policy", model), policy, 0)])

    def ask(self, model: str, order: Order) -> None:
        if self.leader is not None and self.leader.leading:
            self.leader.ask(model, order)

    def crash(self, engine: SimEngine, restart_s: float = 3.0) -> None:
        """The process dies; whoever supervises starts it anew."""
        if not engine.alive:
            return
        self.say(f"crash {engine.holder.engine} in {engine.phase}")
        engine.crash()
        self.graves.append(engine)
        self.clockwork.after(restart_s, lambda: None if self._succeeded(engine) else self._respawn(engine))

    def _succeeded(self, engine: SimEngine) -> bool:
        return self.engines[engine.kind.engine] is not engine

    def _respawn(self, engine: SimEngine) -> None:
        self.say(f"restart {engine.holder.engine}")
        self.spawn(engine.kind)

    def expire(self, engine: SimEngine) -> None:
        self.say(f"lease of {engine.holder.engine} expires in {engine.phase}")
        self.etcd.revoke(engine.lease)
        engine.process.wake()

    def hang(self, engine: SimEngine, seconds: float) -> None:
        self.say(f"{engine.holder.engine} hangs for {seconds:.1f} s in {engine.phase}")
        engine.hang()
        engine.stuck = seconds == float("inf")
        self.clockwork.after(seconds, lambda: engine.resume() if engine.alive else None)

    def restart_daemon(self, node: str, seconds: float) -> None:
        daemon = self.daemons[node]
        if daemon.up:
            self.say(f"daemon {node} is away for {seconds:.1f} s")
            daemon.stop()
            self.clockwork.after(seconds, daemon.start)

    def change_leader(self, deaf_s: float) -> None:
        """The leader's key vanishes; for a while it does not know."""
        leader = self.leader
        if leader is not None:
            self.say(f"{leader.id} loses the lead, and hears of it after {deaf_s:.1f} s")
            leader.resign_late(deaf_s)
            self.clockwork.after(self.rng.uniform(0.0, 1.0), self._elect)

    def lose_store(self) -> None:
        self.say("etcd loses its data")
        self.etcd.reborn()
        for coordinator in self.coordinators:
            if coordinator.leading:
                coordinator.leading = False
                coordinator.handle(LeadershipLost())
            coordinator.register_again()
        for engine in self.engines.values():
            engine.process.wake()
        self.clockwork.after(self.rng.uniform(0.0, 1.0), self._elect)
        for daemon in self.daemons.values():
            daemon.published = {}

    def break_watch(self, coordinator: SimCoordinator) -> None:
        """Compaction: what was under way is lost, a listing comes instead."""
        self.say(f"watch of {coordinator.id} breaks")
        coordinator.watch.closed = True
        self.etcd.watches.remove(coordinator.watch)
        coordinator.watch = self.etcd.watch(coordinator.handle, lambda: self.rng.uniform(0.0, 0.3))

    def _elect(self) -> None:
        order = list(self.coordinators)
        self.rng.shuffle(order)
        if self.leader is None:
            free = [each for each in order if not each.leading]
            if not any(each.campaign() for each in free):
                self.clockwork.after(0.5, self._elect)

    # ---- time and truth

    def run(self, seconds: float) -> None:
        self.clockwork.run(self.clockwork.now + seconds, self.check)

    def check(self) -> None:
        """What must hold after every step."""
        for daemon in self.daemons.values():
            for device in daemon.devices.values():
                if device.mapped > device.capacity:
                    raise Violated(f"I4: {device.mapped} of {device.capacity} mapped on {device.id}")

    def _on_grant(self, command: Grant | Reclaim) -> None:
        """The moment a transaction takes effect: is it allowed, judged by the truth and not by anybody's view?"""
        self.say(
            f"{command.decision.order} {command.holder.engine} at {self.etcd.revision + 1}: {command.decision.cause}"
        )
        for at in command.seats:
            device = self.device(at.device)
            closed = device.epoch == command.epoch and device.closed >= at.revision
            seat = self.etcd.get(("seat", at.device))
            own = isinstance(command, Reclaim) and seat is not None and seat.holder == command.holder  # type: ignore[attr-defined]
            if not closed and not own:
                raise Violated(f"granted on {at.device} over an unclosed seat {at.revision} (closed {device.closed})")
        if command.decision.order is Order.RESTORE:
            self.unasked[command.holder.engine] = command.decision.cause.startswith("predicted")
        if isinstance(command, Grant) and command.order is Order.OFFLOAD:
            self._check_victim(command)

    def _check_victim(self, grant: Grant) -> None:
        """Nobody is made to leave before its time, but by an operator."""
        engine = self._process(grant.holder)
        if engine is None or engine.phase is not Phase.RESIDENT or engine.resident_at is None:
            return
        if self.unasked.get(engine.holder.engine):
            return  # nobody has wanted it yet: it has no minimum residency
        stayed = self.clockwork.now - engine.resident_at
        asked = grant.decision.cause.startswith("asked for by") or "drained" in grant.decision.cause
        least = self.models.get(engine.kind.model, self.settings).min_residency
        least = min([least, *self.least.get(engine.kind.model, [])])
        if stayed < least - 1e-9 and not asked:
            raise Violated(f"{grant.holder.engine} must leave after {stayed:.3f} s: {grant.decision.cause}")

    def heal(self) -> None:
        """No fault any more: who hangs goes on, who is away comes back, somebody leads. Only who is stuck while it
        holds something never goes on: it must be reclaimed."""
        for engine in self.engines.values():
            if engine.process.frozen and not (engine.stuck and self._holds(engine.holder)):
                engine.resume()
        for daemon in self.daemons.values():
            daemon.denials = 0
            if not daemon.up:
                daemon.start()
        for coordinator in self.coordinators:
            coordinator.away = coordinator.lossy = 0.0
        self.say("healed")

    def _holds(self, holder: Holder) -> bool:
        devices = [device for daemon in self.daemons.values() for device in daemon.devices.values()]
        opened = any(device.open is not None and device.open[0] == holder for device in devices)
        return opened or any(holder in device.owners for device in devices)

    def verdict(self) -> list[str]:
        """After healing and time: everything that is not as it should be."""
        wrong = [f"a request for {r.model} of {r.born:.1f} waits for ever" for r in self.requests if not r.ended]
        for daemon in self.daemons.values():
            for device in daemon.devices.values():
                if device.open is not None:
                    wrong.append(f"{device.open[0].engine} never left {device.id}")
                seat = self.etcd.mod(("seat", device.id))
                if device.closed < seat:
                    wrong.append(f"seat {seat} of {device.id} is never closed")
                wrong += [f"dead {h.engine} owns pages of {device.id}" for h in device.owners if not self._alive(h)]
        return wrong
