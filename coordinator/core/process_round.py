"""One round of the leader over engine processes: which lazily started engines run, within their nodes' host memory.

First those that run: who had no work for `stop_after` takes nothing new from now on (*close*), and who is closed, has
ended what it had and is off the device, is stopped. Then those that wait, first come first served: a process is started
where its memory is free; else idle ones make room, whom the policy values least first, and busy ones once the newcomer
has waited as long as they have the right to stay. Nobody who is stopped loses a request that it had taken.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from coordinator.core import host_memory
from coordinator.core.attend import inside
from coordinator.core.commands import Command
from coordinator.core.entries import EngineEntry
from coordinator.core.model import DeviceId, EngineId, Holder, ModelId, Order
from coordinator.core.orders import Lead, Why
from coordinator.core.policy import Resident, Wanted
from coordinator.core.process import Life, Wish
from coordinator.core.processes import ProcessEntry
from coordinator.core.room import choose, in_order
from coordinator.core.round import RETRY_AFTER_S, Desk
from coordinator.core.settings import Settings
from coordinator.core.standing import Standing
from coordinator.core.starts import Starts
from coordinator.core.victims import NEVER, Victim, World
from coordinator.core.words import names, size

START_S = 30.0
"""What a start is taken to cost until it was measured."""
_OFF = frozenset({Standing.ASLEEP, Standing.UNBORN, Standing.RESTING, Standing.FAILED})
"""Standings in which an engine holds no pages and nothing is under way."""


class Verdict(IntEnum):
    """In order of preference among the places where a model's process could run."""

    GO = 0
    CLOSE = 1
    WAIT = 2
    IMPOSSIBLE = 3


class Start(msgspec.Struct, frozen=True):
    """How one process could be started: `victims` are closed first. `holds`: those behind leave it its room."""

    verdict: Verdict
    entry: ProcessEntry
    victims: tuple[Victim, ...] = ()
    pool: tuple[Victim, ...] = ()
    until: float = NEVER
    why: str = ""
    holds: bool = False


class ProcessRound:
    """See the module. Make one, `run` it once."""

    def __init__(self, world: World, desk: Desk, starts: Starts, lead: Lead) -> None:
        self._world = world
        self._ledger = world.ledger
        self._processes = world.ledger.processes
        self._desk = desk
        self._starts = starts
        self._lead = lead
        self._now = world.now
        self._reserved: dict[str, int] = {}
        self._together: list[tuple[ModelId, list[ProcessEntry]]] = []
        """Models that start, and those of their processes that may come along."""
        self._commands: list[Command] = []

    def run(self, models: set[ModelId]) -> list[Command]:
        """The commands that changes about `models` may have made necessary, on all nodes that have one of them."""
        nodes = sorted({entry.node for model in models for entry in self._processes.of(model) if entry.lazy})
        entries = [entry for node in nodes for entry in self._processes.on(node) if entry.lazy]
        for entry in entries:
            self._keep(entry)
        for model in sorted({ModelId(e.process.model) for e in entries if e.process is not None}):
            if self._wanted(model):
                self._starts.wait(model, self._now)
            else:
                self._starts.leave(model)
        for model in sorted({ModelId(e.process.model) for e in entries if e.process is not None}, key=self._turn):
            if self._starts.since(model) is not None:
                self._serve(model)
        for model, others in self._together:  # once nobody waits for a first one
            self._start_replicas(model, others)
        for entry in entries:
            if self._starts.owed(entry.id):
                self._start_again(entry)
        return self._commands

    # ---- what both use

    def _settings(self, model: str) -> Settings:
        return self._world.models.of(ModelId(model))

    def _engine(self, entry: ProcessEntry) -> EngineEntry | None:
        engine = self._ledger.engines.get(entry.id)
        return engine if engine is not None and engine.spec is not None else None

    def _standing(self, engine: EngineEntry) -> Standing:
        return self._world.stand(engine).standing

    def _order(self, entry: ProcessEntry, wish: Wish, why: Why) -> None:
        if self._starts.blocked(entry.id, self._now):
            self._alarm(entry, self._starts.rests_until(entry.id))
            return
        direct = self._starts.direct(self._lead, entry, wish, why)
        if direct is not None:
            self._commands.append(direct)

    def _alarm(self, entry: ProcessEntry, at: float) -> None:
        if entry.process is not None and at > self._now:
            self._desk.alarms.set("model", entry.process.model, at)

    # ---- those that run

    def _keep(self, entry: ProcessEntry) -> None:
        if entry.wish is Wish.CLOSE:
            self._finish(entry)
        elif entry.wish is Wish.RUN and entry.process is not None and entry.process.stop_after is not None:
            self._rest(entry, entry.process.stop_after)

    def _finish(self, entry: ProcessEntry) -> None:
        """A closed one is stopped when nothing of it is lost by that."""
        engine = self._engine(entry)
        process = entry.process
        if process is None or (engine is None and process.life is Life.RUNNING):
            return  # it registers again, or its keeper says that it has ended
        if engine is None or (not inside(engine) and self._standing(engine) in _OFF):
            self._order(entry, Wish.STOP, Why(entry.order.cause if entry.order is not None else ""))

    def _rest(self, entry: ProcessEntry, stop_after: float) -> None:
        engine, process = self._engine(entry), entry.process
        if engine is None or process is None or process.life is not Life.RUNNING or self._world.busy(engine):
            return
        if self._settings(process.model).pin or self._standing(engine) is Standing.STARTING:
            return
        idle_since = max(engine.active_at, engine.resident_since, entry.since)
        if self._now >= idle_since + stop_after:
            cause = f"idle for {self._now - idle_since:.1f} s, stopped after {stop_after:g} s"
            self._order(entry, Wish.CLOSE, Why(cause))
        self._alarm(entry, idle_since + stop_after)

    # ---- those that wait

    def _wanted(self, model: ModelId) -> bool:
        """Whether requests wait, and no process is there, or on its way, that could take them."""
        if self._settings(model).drained:
            return False
        if not self._world.demand.waiting(model) and self._desk.asks.wakes(model) is None:
            return False
        here = any(self._processes.wish(engine.id) is Wish.RUN for engine in self._ledger.engines_of(model))
        return not (here or self._runs(model))

    def _runs(self, model: ModelId) -> bool:
        """Whether a process of it runs, or is on its way, that takes requests."""
        entries = self._processes.of(model)
        return any((e.wish is Wish.RUN and not e.down) or self._starts.running(e.id) for e in entries)

    def _turn(self, model: ModelId) -> tuple[float, int, str]:
        since = self._starts.since(model)
        return (since if since is not None else NEVER, -self._settings(model).priority, model)

    def _serve(self, model: ModelId) -> None:
        entries = [entry for entry in self._processes.of(model) if entry.lazy]
        ready = [entry for entry in entries if entry.down and not self._starts.blocked(entry.id, self._now)]
        able = [entry for entry in ready if self._now >= self._retry_at(entry)]
        for entry in entries:
            self._alarm(entry, max(self._retry_at(entry), self._starts.rests_until(entry.id)))
        best = min((self._plan(model, entry) for entry in able), key=self._preference, default=None)
        if best is None:
            if ready and len(ready) == len(entries):
                self._refuse_failed(model, min(ready, key=self._retry_at))
        elif best.verdict is Verdict.IMPOSSIBLE:
            self._refuse(model, best.why, RETRY_AFTER_S)
        else:
            self._desk.refusals.lift(model)
            self._follow(model, best)
            if best.verdict is Verdict.GO:
                self._together.append((model, [entry for entry in able if entry is not best.entry]))

    def _retry_at(self, entry: ProcessEntry) -> float:
        """A process that could not be started is let alone for a while; then who asks tries again."""
        failed = entry.process is not None and entry.process.life is Life.FAILED and entry.wish is Wish.RUN
        return entry.since + self._world.limits.retry_most_s if failed else 0.0

    def _refuse_failed(self, model: ModelId, entry: ProcessEntry) -> None:
        error = entry.process.error if entry.process is not None else ""
        self._refuse(model, f"{entry.id} could not be started: {error}", max(1.0, self._retry_at(entry) - self._now))

    def _refuse(self, model: ModelId, reason: str, retry_after_s: float) -> None:
        waiting = self._world.demand.waiting(model)
        refusal = self._desk.refusals.consider(model, reason, waiting, retry_after_s)
        self._desk.asks.refused(model)
        if refusal is not None:
            self._commands.append(refusal)

    def _preference(self, each: Start) -> tuple[Verdict, int, int, str]:
        """Lowest first: what can be done, at the least cost for others, where most of the device is left."""
        return each.verdict, len(each.victims), -self._device_free(each.entry), each.entry.id

    def _device_free(self, entry: ProcessEntry) -> int:
        """Bytes of its devices that nobody holds, or is on the way to hold; the least of a group's."""
        left = []
        for device in entry.process.devices if entry.process is not None else ():
            known = self._ledger.device(DeviceId(device))
            capacity = known.state.capacity if known.state is not None else 0
            left.append(capacity - known.charged - self._coming_to(device))
        return min(left, default=0)

    def _coming_to(self, device: str) -> int:
        on = (entry for entry in self._processes.on(device.rpartition("/")[0]) if entry.process is not None)
        return sum(
            entry.process.weights // len(entry.process.devices)
            for entry in on
            if entry.process is not None
            and device in entry.process.devices
            and (self._starts.running(entry.id) or (entry.wish is Wish.RUN and not entry.down))
            and not host_memory.loaded(self._ledger, entry)
        )

    def _plan(self, model: ModelId, entry: ProcessEntry) -> Start:
        """How this one could be started, once those ahead have been."""
        if entry.node not in self._processes.ram:
            return Start(Verdict.WAIT, entry, why=f"the daemon of {entry.node} is not there")
        budget = host_memory.total(self._ledger, entry.node)
        free = budget - host_memory.taken(self._ledger, self._starts, entry.node)
        need = host_memory.need(entry)
        if not budget or need <= free - self._reserved.get(entry.node, 0):
            return Start(Verdict.GO, entry, holds=True)
        settled = self._processes.returning(entry.node) + self._world.limits.answer_s
        if self._now < settled and need <= budget:
            return Start(Verdict.WAIT, entry, until=settled, why="memory is on its way back", holds=True)
        pool = self._pool(model, entry)
        if need > free + sum(victim.bytes[host_memory.name(entry.node)] for victim in pool if not victim.pinned):
            return Start(Verdict.IMPOSSIBLE, entry, pool=tuple(pool), why=self._hopeless(entry, pool))
        leaving = sum(v.bytes[host_memory.name(entry.node)] for v in pool if self._leaves(v))
        missing = need - (free - self._reserved.get(entry.node, 0) + leaving)
        return self._make_room(entry, {host_memory.name(entry.node): missing}, pool)

    def _make_room(self, entry: ProcessEntry, missing: dict[DeviceId, int], pool: list[Victim]) -> Start:
        if max(missing.values()) <= 0:
            return Start(Verdict.WAIT, entry, pool=tuple(pool), why="room is being made", holds=True)
        free = [victim for victim in pool if not victim.pinned and not self._leaves(victim)]
        ready = choose(missing, [victim for victim in free if victim.not_before <= self._now])
        if ready is not None:
            return Start(Verdict.CLOSE, entry, ready, tuple(pool), holds=True)
        until = min((victim.not_before for victim in free if victim.not_before > self._now), default=NEVER)
        later = in_order(missing, sorted(free, key=lambda victim: (victim.not_before, victim.value, victim.holder)))
        return Start(Verdict.WAIT, entry, pool=tuple(pool), until=until, holds=later is not None)

    def _leaves(self, victim: Victim) -> bool:
        engine = EngineId(victim.holder.engine)
        return self._starts.leaving(engine) or self._processes.wish(engine) is not Wish.RUN

    def _hopeless(self, entry: ProcessEntry, pool: list[Victim]) -> str:
        ram = size(host_memory.total(self._ledger, entry.node))
        pinned = [victim.holder.engine for victim in pool if victim.pinned]
        held = f"; pinned {names(pinned)} hold memory of it" if pinned else ""
        return f"{entry.id} needs {size(host_memory.need(entry))} of {entry.node}'s host memory, which has {ram}{held}"

    def _pool(self, model: ModelId, newcomer: ProcessEntry) -> list[Victim]:
        """Every other lazily started process on the node, lowest score first."""
        since = self._starts.since(model)
        wanted = Wanted(newcomer.id, model, self._settings(model), self._now if since is None else since)
        others = [e for e in self._processes.on(newcomer.node) if e.lazy and e.id != newcomer.id and not self._gone(e)]
        found = [self._victim(entry, wanted) for entry in others]
        return sorted(found, key=lambda victim: (victim.value, victim.holder))

    def _gone(self, entry: ProcessEntry) -> bool:
        return entry.down and not self._starts.running(entry.id)

    def _victim(self, entry: ProcessEntry, wanted: Wanted) -> Victim:
        engine, process = self._engine(entry), entry.process
        taken = {host_memory.name(entry.node): host_memory.freed(self._ledger, entry)}
        holder = engine.holder if engine is not None and engine.holder is not None else Holder(entry.id, "-")
        if process is not None and self._settings(process.model).pin:
            return Victim(holder, Order.CLOSE, taken, 0.0, NEVER, "pinned", pinned=True)
        if engine is None or process is None or process.life is not Life.RUNNING or engine.phase is None:
            return Victim(holder, Order.CLOSE, taken, 0.0, NEVER, "its process is on its way")
        resident = self._resident(entry, engine, taken[host_memory.name(entry.node)])
        score = self._world.policy.score(resident, wanted, self._now)
        victim = Victim(holder, Order.CLOSE, taken, score.value, score.not_before, score.why, resident=resident)
        return msgspec.structs.replace(victim, rank=score.rank, seconds=score.seconds)

    def _resident(self, entry: ProcessEntry, engine: EngineEntry, bytes_: int) -> Resident:
        """For the policy a process is what a resident engine is, and its start is the restore: it stays at least as
        long as its start took."""
        model = engine.model or ModelId("")
        settings, busy = self._settings(model), self._world.busy(engine)
        start_s = engine.spec.cold_start if engine.spec is not None and engine.spec.cold_start else START_S
        least = max(settings.min_residency, start_s)
        return Resident(
            engine=engine.id,
            model=model,
            settings=msgspec.structs.replace(settings, min_residency=least),
            bytes=bytes_,
            busy=busy,
            resident_since=entry.since,
            active_at=self._now if busy else max(engine.active_at, entry.since),
            restore_s=start_s,
            inside=inside(engine) + self._world.demand.waiting(model),
            habit=self._world.arrivals.of(model),
        )

    def _follow(self, model: ModelId, best: Start) -> None:
        waited = self._now - (self._starts.since(model) or self._now)
        asked = f"requests for {model} have waited for {waited:.2f} s"
        candidates = tuple(victim.candidate for victim in best.pool)
        why = Why(asked, candidates, model, self._world.policy.name)
        if best.verdict is Verdict.GO:
            self._order(best.entry, Wish.RUN, why)
        for victim in best.victims:
            cause = f"host memory for {best.entry.id}: {asked}; {victim.holder.engine}: {victim.why}"
            closed = self._processes.entries[EngineId(victim.holder.engine)]
            self._order(closed, Wish.CLOSE, msgspec.structs.replace(why, cause=cause))
        self._alarm(best.entry, best.until)
        if best.holds and best.verdict is not Verdict.GO:
            self._reserve(best)

    def _start_replicas(self, model: ModelId, others: list[ProcessEntry]) -> None:
        """With the one that is started: nobody makes room for them."""
        for entry in others:
            if entry.process is None or not entry.process.together:
                continue
            start = self._plan(model, entry)
            if start.verdict is Verdict.GO:
                self._starts.owe(entry.id)
                self._follow(model, start)

    def _start_again(self, entry: ProcessEntry) -> None:
        """A replica whose order may have failed: once more, while its model runs or waits and it has room."""
        at = self._starts.again_at(entry.id)
        if self._starts.blocked(entry.id, self._now) or self._now < at:
            self._alarm(entry, at)
            return
        model = ModelId(entry.process.model) if entry.process is not None else ModelId("")
        runs = self._starts.since(model) is not None or self._runs(model)
        due = entry.down and runs and not self._settings(model).drained
        if due and self._plan(model, entry).verdict is Verdict.GO:
            why = f"it goes with the other replicas of {model}, and its first order failed"
            self._order(entry, Wish.RUN, Why(why, (), model, self._world.policy.name))
        else:
            self._starts.settle(entry.id)

    def _reserve(self, best: Start) -> None:
        """Those behind see the newcomer in its place; what leaves for it is counted as leaving."""
        node = best.entry.node
        self._reserved[node] = self._reserved.get(node, 0) + host_memory.need(best.entry)
