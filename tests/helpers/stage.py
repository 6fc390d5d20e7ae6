"""A scheduler on a stage: say what is seen, get what it orders; the ledger is checked after every event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from coordinator.core.commands import Command, Grant, Reclaim, Refuse, Route
from coordinator.core.events import (
    Changed,
    DemandSeen,
    DeviceSeen,
    EpochSeen,
    Event,
    Fact,
    Granted,
    GrantRefused,
    LeadershipGained,
    Listed,
    LoadSeen,
    OrderAsked,
    PolicySeen,
    ResidencySeen,
    SeatSeen,
    SpecSeen,
    Tick,
    TokenSeen,
)
from coordinator.core.model import (
    Bytes,
    Demand,
    Device,
    Epoch,
    Fence,
    Holder,
    Load,
    ModelId,
    Order,
    Owner,
    Phase,
    Policy,
    Residency,
    Spec,
)
from coordinator.core.orders import effects_of
from coordinator.core.policies.registry import make
from coordinator.core.scheduler import Scheduler
from coordinator.core.settings import Limits, Settings
from tests.helpers.sim.coordinator import round_trip

EPOCH = "life-1"
KEY = "election/1"
C = TypeVar("C", bound=Command)


def holder(engine: str, nonce: str = "n1") -> Holder:
    return Holder(engine, nonce)


class Stage:
    """Devices of 100 bytes in chunks of 1, unless said otherwise. Time stands still until `at`."""

    def __init__(
        self,
        *devices: str,
        capacity: int = 100,
        chunk: int = 1,
        settings: Settings | None = None,
        models: Mapping[str, Settings] | None = None,
        limits: Limits | None = None,
        lead: bool = True,
        next_decision: int = 0,
        policy: str = "lru",
        shadow: str = "",
        predict: bool = False,
    ) -> None:
        self.capacity, self.chunk = capacity, chunk
        self.scheduler = Scheduler(
            settings or Settings(keep_alive=None, min_residency=0.0),
            {**(models or {})},  # type: ignore[dict-item]
            limits=limits,
            next_decision=next_decision,
            policy=make(policy),
            shadow=make(shadow) if shadow else None,
            predict=predict,
        )
        self.now = 100.0
        self.revision = 10
        self.specs: dict[str, tuple[Spec, int, int]] = {}
        self.states: dict[str, Device] = {}
        self.said: list[Command] = []
        facts: list[Fact] = [EpochSeen(Epoch(id=EPOCH), 1)]
        for device in devices or ("n/0",):
            self.states[device] = self.state()
            facts.append(DeviceSeen(device, self.states[device], 2))
        self.hear(Listed(tuple(facts), self.revision))
        if lead:
            self.hear(LeadershipGained(KEY, 7))
        self.said.clear()

    # ---- events

    def hear(self, event: Event) -> list[Command]:
        commands = self.scheduler.handle(round_trip(event), self.now)
        self.scheduler.check()
        self.said += commands
        return commands

    def see(self, *facts: Fact) -> list[Command]:
        """All of one revision."""
        return self.hear(Changed(facts, self.revision))

    def next(self) -> int:
        self.revision += 1
        return self.revision

    def at(self, now: float) -> list[Command]:
        """Time passes to `now`; ticks come as they were asked for."""
        commands: list[Command] = []
        while (deadline := self.scheduler.deadline()) is not None and deadline <= now:
            assert deadline > self.now or not commands, "it asks for ticks without end"
            self.now = max(self.now, deadline)
            commands += self.hear(Tick())
        self.now = now
        return commands + self.hear(Tick())

    # ---- engines

    def spec(
        self,
        engine: str,
        *devices: str,
        weights: int = 40,
        kv: int = 0,
        overhead: int = 0,
        model: str = "",
        nonce: str = "n1",
        measured: bool = True,
        aliases: tuple[str, ...] = (),
    ) -> SpecSeen:
        spec = Spec(
            holder=holder(engine, nonce),
            model=model or engine,
            url=f"http://{engine}",
            devices=devices or ("n/0",),
            pid=1,
            boot_id="boot",
            footprint=Bytes(weights=weights, kv=kv, overhead=overhead),
            measured=measured,
            aliases=aliases,
        )
        revision = self.next()
        lease = self.specs[engine][2] if engine in self.specs else 1000 + revision
        self.specs[engine] = (spec, revision, lease)
        return SpecSeen(engine, spec, revision, lease)  # type: ignore[arg-type]

    def residency(
        self, engine: str, phase: Phase, *, fence: int | None = None, error: str = "", busy: bool = False
    ) -> ResidencySeen:
        owner = self.specs[engine][0].holder
        under = Fence(EPOCH, fence) if fence is not None else None
        said = Residency(holder=owner, phase=phase, fence=under, error=error, busy=busy)
        return ResidencySeen(engine, said, self.next())  # type: ignore[arg-type]

    def engine(self, engine: str, phase: Phase = Phase.OFFLOADED, **spec: object) -> list[Command]:
        """An engine registers; resident means with its pages."""
        devices = spec.pop("devices", ("n/0",))
        fact = self.spec(engine, *devices, **spec)  # type: ignore[arg-type, misc]
        said = self.residency(engine, phase)
        owned = [self.own(device, engine) for device in devices] if phase is Phase.RESIDENT else []  # type: ignore[union-attr]
        return self.see(fact, said, *owned)

    def gone(self, engine: str) -> list[Command]:
        """Its lease ended."""
        revision = self.next()
        tokens = [
            TokenSeen(entry.id, None, revision)
            for entry in self.scheduler._ledger.devices.values()
            if entry.token is not None and entry.token.holder.engine == engine
        ]
        return self.see(
            SpecSeen(engine, None, revision),  # type: ignore[arg-type]
            ResidencySeen(engine, None, revision),  # type: ignore[arg-type]
            LoadSeen(engine, None, revision),  # type: ignore[arg-type]
            *tokens,
        )

    def load(self, engine: str, running: int = 0, waiting: int = 0) -> list[Command]:
        return self.see(LoadSeen(engine, Load(running=running, waiting=waiting), self.next()))  # type: ignore[arg-type]

    # ---- devices

    def state(self, *, closed: int = 0, owners: tuple[Owner, ...] = (), epoch: str = EPOCH) -> Device:
        return Device(
            driver="host", capacity=self.capacity, chunk=self.chunk, epoch=epoch, closed=closed, owners=owners
        )

    def device(self, device: str = "n/0", **change: object) -> DeviceSeen:
        """The daemon publishes."""
        self.states[device] = msgspec.structs.replace(self.states[device], **change)
        return DeviceSeen(device, self.states[device], self.next())  # type: ignore[arg-type]

    def own(self, device: str, engine: str, nonce: str = "n1") -> DeviceSeen:
        footprint = self.specs[engine][0].footprint
        owners = [owner for owner in self.states[device].owners if owner.holder.engine != engine]
        owners.append(Owner(holder(engine, nonce), Bytes(weights=footprint.weights, kv=footprint.kv)))
        return self.device(device, owners=tuple(owners))

    def disown(self, device: str, engine: str) -> DeviceSeen:
        owners = tuple(owner for owner in self.states[device].owners if owner.holder.engine != engine)
        return self.device(device, owners=owners)

    # ---- the course of an operation

    def took(self, command: Grant | Reclaim) -> int:
        """Its transaction took effect; the answer comes before the watch."""
        revision = self.next()
        self.hear(Granted(command.id, revision))
        return revision

    def shown(self, command: Grant | Reclaim) -> int:
        """Its transaction took effect; the watch shows it, the answer is lost."""
        revision = self.next()
        self.see(*effects_of(command, revision))
        return revision

    def close(self, command: Grant | Reclaim, revision: int) -> list[Command]:
        """The engine has done it and left: so says the daemon, the engine itself not yet."""
        said: list[Command] = []
        for seat in command.seats:
            engine = command.holder.engine
            restored = isinstance(command, Grant) and command.order is Order.RESTORE
            fact = self.own(seat.device, engine) if restored else self.disown(seat.device, engine)
            self.states[seat.device] = msgspec.structs.replace(self.states[seat.device], closed=revision)
            said += self.see(DeviceSeen(seat.device, self.states[seat.device], fact.revision))
        return said

    def answer(self, grant: Grant, revision: int) -> list[Command]:
        """The engine's word on it."""
        phase = Phase.RESIDENT if grant.order is Order.RESTORE else Phase.OFFLOADED
        return self.see(self.residency(grant.holder.engine, phase, fence=revision))

    def done(self, grant: Grant) -> list[Command]:
        """All of it at once."""
        revision = self.took(grant)
        return self.close(grant, revision) + self.answer(grant, revision)

    # ---- others

    def demand(self, model: str, waiting: int, gateway: str = "here") -> list[Command]:
        return self.hear(DemandSeen(gateway, model, Demand(waiting=waiting) if waiting else None))  # type: ignore[arg-type]

    def keep(self, model: str, seconds: float | None, gateway: str = "here") -> list[Command]:
        """A gateway in this process hears that requests want it kept; None: they do no more."""
        demand = None if seconds is None else Demand(waiting=0, keep_alive=seconds)
        return self.hear(DemandSeen(gateway, ModelId(model), demand))

    def policy(self, model: str, policy: Policy | None) -> list[Command]:
        return self.see(PolicySeen(model, policy, self.next()))  # type: ignore[arg-type]

    def ask(self, model: str, order: Order) -> list[Command]:
        return self.hear(OrderAsked(model, order))  # type: ignore[arg-type]

    def refused(self, command: Grant | Reclaim, reason: str = "etcd is away") -> list[Command]:
        return self.hear(GrantRefused(command.id, reason))


def of(kind: type[C], commands: list[Command]) -> list[C]:
    return [command for command in commands if isinstance(command, kind)]


def grants(commands: list[Command]) -> list[Grant]:
    return of(Grant, commands)


def only(kind: type[C], commands: list[Command]) -> C:
    """The one command of this kind."""
    found = of(kind, commands)
    assert len(found) == 1, found
    return found[0]


def orders(commands: list[Command]) -> list[tuple[Order, str]]:
    """What is granted to whom, in order."""
    return [(grant.order, grant.holder.engine) for grant in grants(commands)]


def routes(commands: list[Command]) -> dict[str, list[str]]:
    return {route.model: [endpoint.engine for endpoint in route.endpoints] for route in of(Route, commands)}


def refusals(commands: list[Command]) -> list[Refuse]:
    return of(Refuse, commands)


__all__ = ["SeatSeen", "Stage", "grants", "holder", "of", "only", "orders", "refusals", "routes"]
