"""Every decision, as a function of events and time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import assert_never

from coordinator.core.alarms import Alarms
from coordinator.core.arrivals import Arrivals
from coordinator.core.asks import Asks
from coordinator.core.attend import Attendance
from coordinator.core.commands import Command, Refuse
from coordinator.core.costs import Costs
from coordinator.core.demand import Demand, Queue
from coordinator.core.events import (
    Changed,
    DecisionSeen,
    DemandSeen,
    Event,
    Fact,
    Granted,
    GrantRefused,
    LeadershipGained,
    LeadershipLost,
    Listed,
    OrderAsked,
    PolicySeen,
    ProcessOrderSeen,
    Reconfigured,
    ResidencySeen,
    SpecSeen,
    Tick,
)
from coordinator.core.ledger import Ledger
from coordinator.core.listing import relisted
from coordinator.core.model import DeviceId, ModelId, Order, Policy
from coordinator.core.orders import Lead, Orders, effects_of
from coordinator.core.policies.registry import DEFAULT, make
from coordinator.core.policy import EvictionPolicy
from coordinator.core.predictions import Predictions
from coordinator.core.process_round import ProcessRound
from coordinator.core.refusals import Refusals
from coordinator.core.round import Desk, Round
from coordinator.core.routes import Routes
from coordinator.core.settings import Limits, Models, Settings
from coordinator.core.snapshot import snapshot
from coordinator.core.standing import COMING, Standing, judge, stand
from coordinator.core.starts import Starts
from coordinator.core.ties import Ties
from coordinator.core.victims import World
from coordinator.core.view import PolicyState, State

_HERE = COMING | {Standing.SERVING}


class Scheduler:
    """One way in: `handle`. Pure: it knows no clock, no store, no process. Times are monotonic seconds.

    **Safety** (PROTOCOL rules 2-4, 10, 13). A device is granted only while its daemon's key stands in the current
    epoch, says `closed >= seat`, and no transaction of ours on it is unanswered; a group only if that holds for all its
    devices. Exactly then `owners` are true, and only they are charged. Every transaction compares what the decision
    rested on (leader, epoch, seats, spec), so a decision on an old picture fails whole. Hence the order of steps:
    victims leave first, one transaction each; the newcomer is granted when the device keys say that they are gone.

    **Liveness.** The queue is first come, first served, per device. Whoever is first waits at most for: the running
    operation on its devices (its limit, then the reclaim's), the largest minimum residency among those who could make
    room (idle residents may leave that long after they came, busy ones also not before the newcomer has waited that
    long), and one operation for each that leaves. Those behind may go before only if that takes nothing from those
    ahead. So a model waits at most (places ahead + 1) x (min_residency + limits of the operations), whatever the
    others do; a hot pair that does not fit together takes turns. What cannot fit, or only if pinned models left, is
    refused with the reason. A start-up queues as if it had come `Limits.startup_delay_s` later, and then like all.

    **Cost.** An event touches its models, their devices, and devices tied to these by waiting groups; nothing else.
    """

    def __init__(
        self,
        defaults: Settings | None = None,
        models: Mapping[ModelId, Settings] | None = None,
        *,
        limits: Limits | None = None,
        policy: EvictionPolicy | None = None,
        options: Mapping[str, object] | None = None,
        shadow: EvictionPolicy | None = None,
        predict: bool = False,
        next_decision: int = 0,
    ) -> None:
        self._limits = limits or Limits()
        self._policy = policy or make(DEFAULT)
        self._chosen: tuple[str, Mapping[str, object]] = (self._policy.name, dict(options or {}))
        self._shadow = shadow
        self._predict = predict
        self._predictions = Predictions()
        self._arrivals = Arrivals()
        self._costs = Costs()
        self._demand = Demand()
        self._models = Models(defaults or Settings(), dict(models or {}), self._demand.kept)
        self._ledger = Ledger()
        self._routes = Routes()
        orders = Orders(self._limits, next_decision)
        self._desk = Desk(Queue(), orders, Refusals(), Asks(), Alarms(), Ties())
        self._starts = Starts(orders, self._limits)
        self._lead: Lead | None = None
        self._now = 0.0

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take note of `event`, which came at `now`, and say what is to be done. Events may be late or doubled."""
        self._now = now
        epoch = self._ledger.epoch
        models, devices = self._absorb(event, now)
        if self._ledger.epoch != epoch:
            self._desk.orders.give_up()
        touched = self._ledger.take_touched()
        models |= touched.models
        devices |= touched.devices
        self._desk.orders.changed(touched.devices)
        self._desk.orders.overtaken(self._ledger, touched.devices)
        self._starts.overtaken(self._ledger.processes)
        due = self._desk.alarms.due(now)
        models |= {ModelId(name) for kind, name in due if kind == "model"}
        devices |= {DeviceId(name) for kind, name in due if kind == "device"}
        commands: list[Command] = []
        world = self._world()
        for model in sorted(models):
            commands += self._attend(model, world)
            devices.update(device for engine in self._ledger.engines_of(model) for device in engine.devices)
        if self._lead is not None and self._ledger.epoch is not None:
            devices |= self._desk.ties.take(devices)
            for group in self._desk.queue.groups(devices):
                commands += Round(world, self._desk, self._lead).run(group)
            if self._ledger.processes.models:
                commands += ProcessRound(world, self._desk, self._starts, self._lead).run(models)
        return commands

    def deadline(self) -> float | None:
        """When a `Tick` is wanted, in monotonic seconds; None: nothing is waited for."""
        return self._desk.alarms.next()

    def settings(self, model: ModelId) -> Settings:
        """How `model` is treated now: configured, and what `policy/<model>` overrides."""
        return self._models.of(model)

    def configured(self, model: ModelId) -> tuple[Settings, Policy | None]:
        """How the file has `model` treated, and what stands in etcd over it."""
        return self._models.configured(model), self._models.overridden(model)

    @property
    def chosen(self) -> PolicyState:
        """Who decides which resident leaves, and who is only asked."""
        name, options = self._chosen
        shadow = self._shadow.name if self._shadow is not None else None
        return PolicyState(name, dict(options), shadow, self._predict, *self.predictions)

    @property
    def predictions(self) -> tuple[int, int]:
        """Restores that nobody had asked for, and those of them that left again unused."""
        return self._predictions.woken, self._predictions.regretted

    def view(self) -> State:
        """All that is known, as of the last event; immutable. Costs a walk over everything."""
        return snapshot(self._world(), self._desk, self._starts, self._routes, leading=self._lead is not None)

    def check(self) -> None:
        """Raises LedgerBroken if the ledger contradicts itself (tests call it after every step)."""
        self._ledger.check()

    def _world(self) -> World:
        """All that this moment's decisions rest on."""
        return World(
            self._ledger,
            self._demand,
            self._models,
            self._limits,
            self._policy,
            self._arrivals,
            self._costs,
            self._predictions,
            self._shadow,
            self._predict,
            self._now,
        )

    # ---- events

    def _absorb(self, event: Event, now: float) -> tuple[set[ModelId], set[DeviceId]]:
        """Take note; returns models and devices touched beside those that the ledger knows of."""
        models: set[ModelId] = set()
        devices: set[DeviceId] = set()
        match event:
            case Listed():
                models = self._listed(event, now)
            case Changed():
                models = self._changed(event, now)
            case DemandSeen():
                models = self._count(event, now, posted=True)
            case LeadershipGained():
                models = self._take_lead(event, now)
            case LeadershipLost():
                models = self._resign()
            case Granted():
                devices = self._granted(event, now)
            case GrantRefused():
                devices = self._refused(event, now)
            case OrderAsked():
                models = self._asked(event, now)
            case Reconfigured():
                self._reconfigured(event)
            case Tick():
                pass
            case _:
                assert_never(event)
        return models, devices

    def _listed(self, event: Listed, now: float) -> set[ModelId]:
        models = self._demand.forget_seen() | self._models.forget()
        self._ledger = relisted(self._ledger, event.facts, event.revision, now)
        return models | self._note(event.facts, now)

    def _changed(self, event: Changed, now: float) -> set[ModelId]:
        if event.revision <= self._ledger.revision:
            return set()
        for fact in event.facts:
            self._ledger.apply(fact, now)
        self._ledger.revision = event.revision
        return self._note(event.facts, now)

    def _note(self, facts: Iterable[Fact], now: float) -> set[ModelId]:
        """What beside the ledger learns from facts. Returns the models concerned."""
        models: set[ModelId] = set()
        for fact in facts:
            match fact:
                case DemandSeen():
                    models |= self._count(fact, now, posted=False)
                case PolicySeen():
                    models.add(fact.model)
                    self._models.override(fact.model, fact.policy)
                case DecisionSeen():
                    self._desk.orders.number_above(fact.n)
                case SpecSeen() if fact.spec is None:
                    self._costs.forget(fact.engine)
                    self._predictions.forget(fact.engine)
                case ResidencySeen() if fact.engine in self._ledger.engines:
                    self._answered(fact, now)
                case _:
                    pass
        return models

    def _answered(self, fact: ResidencySeen, now: float) -> None:
        """An engine says what became of its order, and how long that took."""
        engine = self._ledger.engines[fact.engine]
        judged = engine.judged
        judge(self._ledger, engine, now, self._limits)
        if (
            engine.judged != judged
            and not engine.failures
            and engine.ordered is not None
            and fact.residency is not None
        ):
            self._costs.learn(engine.id, engine.ordered, fact.residency)

    def _count(self, demand: DemandSeen, now: float, *, posted: bool) -> set[ModelId]:
        before = self._demand.waiting(demand.model)
        models = {demand.model}
        if posted:
            models = self._demand.post(demand)
        else:
            self._demand.see(demand)
        after = self._demand.waiting(demand.model)
        self._desk.refusals.left(demand.model, after)
        if before and not after:
            self._ledger.used(demand.model, now)
        return models

    def _take_lead(self, event: LeadershipGained, now: float) -> set[ModelId]:
        self._lead = Lead(event.key, event.create_revision)
        self._desk.orders.give_up()
        self._starts.forget()
        self._ledger.restart_limits(now)
        self._ledger.touch_all(self._ledger)
        return set()

    def _resign(self) -> set[ModelId]:
        self._lead = None
        self._desk.orders.give_up()
        self._starts.forget()
        self._desk.asks.clear()
        self._desk.refusals.clear()
        self._desk.alarms.clear_all()
        self._desk.ties.clear()
        self._ledger.touch_all(self._ledger)
        return set()

    def _granted(self, event: Granted, now: float) -> set[DeviceId]:
        if (direct := self._starts.answered(event.id)) is not None:
            seen = ProcessOrderSeen(direct.engine, direct.order, event.revision)
            self._ledger.apply(seen, now)
            return set()
        command = self._desk.orders.answered(event.id)
        if command is None:
            return set()
        if event.revision > self._ledger.revision:
            for fact in effects_of(command, event.revision):
                self._ledger.apply(fact, now)
        return {seat.device for seat in command.seats}

    def _refused(self, event: GrantRefused, now: float) -> set[DeviceId]:
        if (direct := self._starts.answered(event.id)) is not None:
            self._starts.failed(direct, now)
            for model in self._ledger.processes.models_of(direct.engine):
                self._desk.alarms.set("model", model, self._starts.rests_until(direct.engine))
            return set()
        command = self._desk.orders.answered(event.id)
        if command is None:
            return set()
        if self._desk.orders.current(command, self._ledger):
            self._desk.orders.failed(command, now)
        return {seat.device for seat in command.seats}

    def _asked(self, event: OrderAsked, now: float) -> set[ModelId]:
        """Only a leader takes asks."""
        engines = self._ledger.engines_of(event.model)
        if self._lead is None or not (engines or event.model in self._ledger.processes.models):
            return set()
        if event.order is Order.RESTORE:
            self._desk.asks.wake(event.model, event.by, engines)
            self._ledger.used(event.model, now)
        elif event.order is Order.OFFLOAD:
            for engine in engines:
                self._predictions.forget(engine.id)
            here = [engine for engine in engines if stand(self._ledger, engine, now, self._limits).standing in _HERE]
            self._desk.asks.sleep(event.model, event.by, here)
        return {event.model}

    def _reconfigured(self, event: Reconfigured) -> None:
        """Everything is looked at anew: keep-alives may be over, pins may be gone."""
        self._models.configure(event.defaults, event.models)
        chosen = (event.policy, event.options)
        if chosen != self._chosen:
            self._policy, self._chosen = make(*chosen), chosen
        if event.shadow != (self._shadow.name if self._shadow is not None else None):
            self._shadow = make(event.shadow) if event.shadow is not None else None
        self._predict = event.predict
        self._ledger.touch_all(self._ledger)

    # ---- models

    def _attend(self, model: ModelId, world: World) -> list[Command]:
        """Bring everything that is kept by model up to date."""
        asks = self._desk.asks
        self._note_use(model, world.now)
        for engine in self._ledger.engines_of(model):
            standing = world.stand(engine).standing
            if standing is Standing.SERVING or self._models.of(model).drained:
                asks.woken(model)
            if standing not in _HERE:
                asks.asleep(engine)
        until = Attendance(world, self._desk.queue, model).update(woken=asks.wakes(model) is not None)
        self._desk.alarms.clear("model", model)
        self._desk.alarms.set("model", model, until)
        said = (self._routes.update(world, model), self._refusal(model))
        return [command for command in said if command is not None]

    def _note_use(self, model: ModelId, now: float) -> None:
        engines = self._ledger.engines_of(model)
        place = engines[0].devices[0] if engines else None
        active = self._demand.waiting(model) > 0 or any(engine.working for engine in engines)
        if active:
            for engine in engines:
                self._predictions.used(engine.id)
        if engines or active:
            self._arrivals.note(model, place, now, active=active)
        else:
            self._arrivals.forget(model)

    def _refusal(self, model: ModelId) -> Refuse | None:
        """What can be said without looking at devices: it is drained, or served."""
        refusals = self._desk.refusals
        if self._models.of(model).drained and self._lead is not None and model in self._ledger.models:
            return refusals.consider(model, f"{model} is drained by the operator", self._demand.waiting(model), 30.0)
        if self._starts.since(model) is not None:
            return None  # its start is decided, or refused, elsewhere
        if self._desk.queue.since(model) is None and (self._demand.waiting(model) or self._routes.endpoints(model)):
            refusals.lift(model)
        return None
