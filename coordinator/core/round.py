"""One round of the leader over devices that must be decided together: who is reclaimed, who leaves, who returns.

In this order: operations over their limit and owners lost for good; pages that serve nothing; what operators asked for;
the queue, first come first served; then whoever is idle for too long. Every transaction sent makes its devices busy
until it is answered, so there is at most one per device in a round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from coordinator.core.alarms import Alarms
from coordinator.core.asks import Asks
from coordinator.core.attend import inside, takers, wanted
from coordinator.core.commands import Command
from coordinator.core.demand import Queue, Waiter
from coordinator.core.entries import DeviceEntry, EngineEntry
from coordinator.core.foresight import next_needed
from coordinator.core.model import DeviceId, EngineId, Holder, Order, Phase
from coordinator.core.orders import Lead, Orders, Why
from coordinator.core.plan import Plan, Projection, Verdict, plan
from coordinator.core.policy import Wanted
from coordinator.core.process import Wish
from coordinator.core.refusals import Refusals
from coordinator.core.room import choose
from coordinator.core.standing import COMING, Stand, Standing, answered
from coordinator.core.ties import Ties
from coordinator.core.victims import Victim, World, rescored
from coordinator.core.words import names, requests

LOOKAHEAD = 64
"""How many of a queue are planned for in a round: those behind move up."""
RETRY_AFTER_S = 30.0
"""What is told to those for whom only an operator can do something."""
TRIES_UNTOLD = 3
"""From so many failures in a row on, those who wait are told."""


class Desk(msgspec.Struct, frozen=True):
    """What a round writes: everything but the ledger."""

    queue: Queue
    orders: Orders
    refusals: Refusals
    asks: Asks
    alarms: Alarms
    ties: Ties


class Round:
    """See the module. Make one, `run` it once."""

    def __init__(self, world: World, desk: Desk, lead: Lead) -> None:
        self._world = world
        self._ledger = world.ledger
        self._limits = world.limits
        self._desk = desk
        self._lead = lead
        self._now = world.now
        self._projection = Projection()
        self._commands: list[Command] = []

    def run(self, devices: list[DeviceId]) -> list[Command]:
        """The commands for `devices`, a whole group of the queue's."""
        entries = [self._ledger.device(device) for device in devices]
        for entry in entries:
            self._desk.alarms.clear("device", entry.id)
            self._overdue(entry)
        for engine, at in self._owners(entries):
            self._tidy(engine, at)
        planned = 0
        for waiter in self._desk.queue.in_order(devices):
            planned += self._serve(waiter)
            if planned >= LOOKAHEAD:
                break
        for engine, at in self._owners(entries):
            self._idle(engine, at)
        if self._world.predict and not self._commands:
            self._foresee(entries)
        return self._commands

    # ---- what all of them use

    def _alarm(self, device: DeviceId, at: float) -> None:
        if at > self._now:
            self._desk.alarms.set("device", device, at)

    def _owners(self, entries: list[DeviceEntry]) -> Iterator[tuple[EngineEntry, Stand]]:
        """Registered engines that own pages on these devices."""
        for holder in sorted({holder for entry in entries for holder in entry.held}):
            engine = self._ledger.registered(holder)
            if engine is not None:
                yield engine, self._world.stand(engine)

    def _free(self, devices: Iterable[DeviceId]) -> bool:
        """Whether an operation may be granted on all of them now (PROTOCOL rule 3)."""
        return not any(
            device in self._projection.claimed
            or self._ledger.blocked(device)
            or self._desk.orders.blocked(device, self._now)
            for device in devices
        )

    def _grant(self, engine: EngineEntry, order: Order, why: Why) -> bool:
        """Send it if it may be sent now."""
        if not self._free(engine.devices):
            self._tie(engine.devices)
            return False
        grant = self._desk.orders.grant(self._lead, self._ledger, engine, order, why)
        if grant is not None:
            self._commands.append(grant)
        return grant is not None

    def _tie(self, devices: tuple[DeviceId, ...]) -> None:
        """What could not be done because one of `devices` was busy is thought of again when it no longer is."""
        for device in devices:
            self._desk.ties.tie(device, devices)
            rests_until = self._desk.orders.rests_until(device)
            for other in devices:
                self._alarm(other, rests_until)

    # ---- reclaim (rule 10)

    def _overdue(self, entry: DeviceEntry) -> None:
        """The seat's holder does not answer, or an owner was lost and never came back."""
        seat = entry.seat
        if seat is not None and seat.order is not Order.RECLAIM and not entry.closed(self._ledger.epoch):
            engine = self._ledger.registered(seat.holder)
            told = engine is not None and engine.ordered_revision == entry.fence and answered(self._ledger, engine)
            due = entry.seat_at + seat.limit_s * (2 if told else 1)
            if self._now >= due:
                self._reclaim(seat.holder, f"did not {seat.order} within {seat.limit_s:g} s on {entry.id}")
            self._alarm(entry.id, due)
        for holder, since in sorted(entry.lost_at.items()):
            due = since + self._limits.abandoned_s
            if self._now >= due:
                self._reclaim(holder, f"holds pages of {entry.id} and has had no lease for {self._now - since:.0f} s")
            self._alarm(entry.id, due)

    def _reclaim(self, holder: Holder, cause: str) -> None:
        """On all its devices at once: each closed, or unclosed by its own operation."""
        engine = self._ledger.registered(holder)
        devices = {*self._ledger.places(holder), *(engine.devices if engine is not None else ())}
        entries = [self._ledger.device(device) for device in sorted(devices)]
        all_ = tuple(entry.id for entry in entries)
        if not all(self._reclaimable(entry, holder) for entry in entries):
            self._tie(all_)
            return
        reclaim = self._desk.orders.reclaim(self._lead, self._ledger, holder, all_, cause)
        if reclaim is not None:
            self._commands.append(reclaim)

    def _reclaimable(self, entry: DeviceEntry, holder: Holder) -> bool:
        if entry.dying(holder) or not entry.present(self._ledger.epoch):
            return False
        if self._desk.orders.blocked(entry.id, self._now):
            return False
        own = entry.seat is not None and entry.seat.holder == holder and entry.seat.order is not Order.RECLAIM
        return own or entry.closed(self._ledger.epoch)

    # ---- pages that serve nothing, operators' orders, idleness

    def _tidy(self, engine: EngineEntry, at: Stand) -> None:
        if at.standing is Standing.PARTIAL:
            if self._now >= engine.retry_at:
                self._grant(engine, Order.OFFLOAD, Why(at.why))
            self._alarm(engine.devices[0], engine.retry_at)
        by = self._desk.asks.sleeps(engine)
        if by is not None and at.orderable:
            if self._now >= engine.retry_at:
                self._grant(engine, Order.OFFLOAD, Why(f"asked for by {by}"))
            self._alarm(engine.devices[0], engine.retry_at)

    def _idle(self, engine: EngineEntry, at: Stand) -> None:
        settings = self._world.settings(engine)
        if not at.orderable or self._world.busy(engine):
            return
        if not self._world.open(engine):
            due, cause = engine.retry_at, "its process is to end, and what it had begun is done"
        elif settings.drained:
            due, cause = engine.retry_at, "it is drained, and what it had begun is done"
        elif settings.keep_alive is None or settings.pin:
            return
        else:
            rest = engine.active_at + settings.keep_alive
            due = max(rest, engine.resident_since + settings.min_residency, engine.retry_at)
            cause = f"idle for {self._now - engine.active_at:.1f} s, kept alive for {settings.keep_alive:g} s"
        if self._now >= due:
            self._grant(engine, Order.OFFLOAD, Why(cause))
        self._alarm(engine.devices[0], due)

    def _foresee(self, entries: list[DeviceEntry]) -> None:
        """Room that is left over beside a restore is used for who is likely to come next, if nobody waits."""
        if next(self._desk.queue.in_order(entry.id for entry in entries), None) is not None:
            return
        for entry in entries:
            if entry.seat is None or entry.seat.order is not Order.RESTORE or not self._free((entry.id,)):
                continue
            found = next_needed(self._world, entry.id, self._now)
            if found is not None:
                engine, likely = found
                why = Why(
                    f"predicted: needed soon with {likely:.0%}, and there is room", policy=self._world.policy.name
                )
                if self._grant(engine, Order.RESTORE, why):
                    self._world.predictions.woke(engine.id)

    # ---- the queue

    def _serve(self, waiter: Waiter) -> bool:
        """Whether it has a claim that those behind must respect."""
        engines = self._options(waiter)
        stands = [(engine, self._world.stand(engine)) for engine in engines]
        if waiter.engine is None and any(self._coming(engine, at) for engine, at in stands):
            return False
        ready = {Standing.ASLEEP} if waiter.engine is None else {Standing.ASLEEP, Standing.UNBORN}
        plans = {engine.id: self._plan(waiter, engine) for engine, at in stands if at.standing in ready}
        best = min(plans.values(), key=self._preference, default=None)
        if best is None or best.verdict is Verdict.IMPOSSIBLE:
            self._unready(waiter, stands, plans)
            return False
        if self._speaks(waiter):
            self._desk.refusals.lift(waiter.model)
        self._follow(waiter, best)
        return best.holds

    def _preference(self, each: Plan) -> tuple[Verdict, bool, float, float, str]:
        """Lowest first: what can be done, and now, at the least cost for others, soonest."""
        busy = not self._free(each.engine.devices)
        return each.verdict, busy, each.cost, each.until, each.engine.id

    def _coming(self, engine: EngineEntry, at: Stand) -> bool:
        """Whether it is on its way, or its restore is asked of etcd: one restore per model."""
        return at.standing in COMING or any(self._desk.orders.asked(device, engine.holder) for device in engine.devices)

    def _options(self, waiter: Waiter) -> list[EngineEntry]:
        if waiter.engine is None:
            return [engine for engine in takers(self._world, waiter.model) if self._stays(engine)]
        engine = self._ledger.engines.get(waiter.engine)
        return [engine] if engine is not None and self._stays(engine) else []

    def _stays(self, engine: EngineEntry) -> bool:
        """Whether its process is not about to be stopped."""
        return self._ledger.processes.wish(engine.id) is not Wish.STOP

    def _plan(self, waiter: Waiter, engine: EngineEntry) -> Plan:
        return plan(self._world, self._wanted(waiter, engine), engine, self._projection, self._now)

    def _wanted(self, waiter: Waiter, engine: EngineEntry) -> Wanted:
        place = engine.devices[0]
        around = self._world.arrivals.around(place, self._now)
        residents = len(self._ledger.device(place).held)
        return Wanted(engine.id, waiter.model, self._world.models.of(waiter.model), waiter.since, around, residents)

    def _unready(self, waiter: Waiter, stands: list[tuple[EngineEntry, Stand]], plans: Mapping[EngineId, Plan]) -> None:
        """None of its engines can be restored now."""
        for engine, at in stands:
            self._alarm(engine.devices[0], at.until)
        hopes = [self._hope(waiter, engine, at, plans.get(engine.id)) for engine, at in stands]
        if hopes and all(reason for reason, _ in hopes):
            self._refuse(waiter, *hopes[0])

    def _hope(self, waiter: Waiter, engine: EngineEntry, at: Stand, known: Plan | None) -> tuple[str, float]:
        """Why those who wait should not wait for this engine, and when to come back; no reason: they should."""
        if at.standing is Standing.FAILED:
            return f"{engine.id} failed: {at.why}", RETRY_AFTER_S
        if at.standing is Standing.RESTING and engine.failures >= TRIES_UNTOLD:
            return f"{engine.id} failed {engine.failures} times in a row: {at.why}", at.until - self._now
        if at.standing in (Standing.UNBORN, Standing.ASLEEP):
            plan_ = known or self._plan(waiter, engine)
            return (plan_.why if plan_.verdict is Verdict.IMPOSSIBLE else ""), RETRY_AFTER_S
        return "", 0.0

    def _speaks(self, waiter: Waiter) -> bool:
        """Whether its fate is its model's: an engine's is, where it is the only one. So there is one verdict on a
        model, never two that take turns. A drained model has been spoken for."""
        if self._world.models.of(waiter.model).drained:
            return False
        return waiter.engine is None or len(self._ledger.models.get(waiter.model, ())) == 1

    def _refuse(self, waiter: Waiter, reason: str, retry_after_s: float) -> None:
        if not self._speaks(waiter):
            return
        waiting = self._world.demand.waiting(waiter.model)
        refusal = self._desk.refusals.consider(waiter.model, reason, waiting, retry_after_s)
        self._desk.asks.refused(waiter.model)
        if refusal is not None:
            self._commands.append(refusal)

    def _follow(self, waiter: Waiter, best: Plan) -> None:
        if best.verdict is Verdict.GO:
            if self._grant(best.engine, Order.RESTORE, self._why(waiter, best, self._cause(waiter, best))):
                self._world.predictions.forget(best.engine.id)
                for device in best.engine.devices:
                    self._world.arrivals.restored(device, self._now, len(self._ledger.device(device).held) + 1)
        elif best.verdict is Verdict.EVICT:
            shadow = self._shadow(waiter, best)
            for victim in best.victims:
                self._evict(victim, waiter, best, shadow)
        for device in best.engine.devices:
            self._alarm(device, best.until)
        if best.holds:
            self._projection.reserve(self._world, best)
        if best.verdict in (Verdict.GO, Verdict.EVICT):
            self._claim(best)

    def _why(self, waiter: Waiter, best: Plan, cause: str, shadow: str = "") -> Why:
        candidates = tuple(victim.candidate for victim in best.pool)
        return Why(cause, candidates, waiter.model, self._world.policy.name, shadow)

    def _shadow(self, waiter: Waiter, best: Plan) -> str:
        """What the shadow policy would have done."""
        policy = self._world.shadow
        if policy is None:
            return ""
        ready = [v for v in best.pool if not v.pinned and v.not_before <= self._now]
        free = [v for v in ready if not self._projection.doomed(v.holder)]
        chosen = choose(best.missing, rescored(policy, free, self._wanted(waiter, best.engine), self._now)) or ()
        same = {victim.holder for victim in chosen} == {victim.holder for victim in best.victims}
        return f"{policy.name}: the same" if same else f"{policy.name}: {names(v.holder.engine for v in chosen)}"

    def _evict(self, victim: Victim, waiter: Waiter, best: Plan, shadow: str) -> None:
        cause = f"room for {best.engine.id}: {self._cause(waiter, best)}; {victim.holder.engine}: {victim.why}"
        engine = self._ledger.registered(victim.holder)
        if victim.order is Order.RECLAIM or engine is None:
            self._reclaim(victim.holder, cause)
        elif self._grant(engine, Order.OFFLOAD, self._why(waiter, best, cause, shadow)) and victim.resident is not None:
            self._world.predictions.left(engine)
            for policy in (self._world.policy, self._world.shadow):
                if policy is not None:
                    policy.left(victim.resident, self._wanted(waiter, best.engine), self._now)

    def _claim(self, best: Plan) -> None:
        """The next operation on these devices is this one's, so that a group is not starved by a stream of short ones;
        but nobody waits for a group that itself waits for a start-up."""
        devices = {*best.engine.devices, *(device for victim in best.victims for device in victim.bytes)}
        if not any(self._long(self._ledger.device(device)) for device in devices):
            self._projection.claimed |= devices

    def _long(self, entry: DeviceEntry) -> bool:
        seat = entry.seat
        return seat is not None and seat.limit_s > self._limits.restore_s and not entry.closed(self._ledger.epoch)

    def _cause(self, waiter: Waiter, best: Plan) -> str:
        waited = f"for {self._now - waiter.since:.2f} s"
        again = f" (after {best.engine.failures} failures)" if best.engine.failures else ""
        by = self._desk.asks.wakes(waiter.model)
        count = wanted(self._world, waiter.model) if waiter.engine is None else inside(best.engine)
        if best.engine.phase is Phase.STARTING:
            return f"its start-up waits {waited}{again}"
        if by is not None and not count:
            return f"{by} asked {waited} ago{again}".replace("for ", "", 1)
        return f"{requests(count)} wait{'s' if count == 1 else ''} {waited}{again}"
