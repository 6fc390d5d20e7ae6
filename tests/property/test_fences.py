"""One device under a random leader, random engines and random faults: what PROTOCOL promises holds in every order.

The world here knows the truth (what etcd has, what each engine really maps); the daemon under test sees its own lagging
watch only. Safety is checked after every step. Liveness is checked at the end of every run: from wherever it got to,
fair steps without further faults close every seat.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from native.fences import OFFLOAD, RECLAIM, RESTORE, Accept, Fences, Holder, Open, Record, Refuse, Seat, Token, View
from native.pool import Owner, Pending, Pool, Shortage
from native.protocol import Code, Kind

CAPACITY, CHUNK = 4, 1
LIMIT = 60.0
NAMES = ("a", "b", "c")
names = st.sampled_from(NAMES)


@dataclass
class Engine:
    """`mapped` is the truth: pages this process can touch. A dead one still pins them until its death is proven."""

    name: str
    start: int = 1
    alive: bool = True
    hung: bool = False
    leased: bool = True
    fence: tuple[str, int] | None = None
    working: bool = False
    mapped: set[int] = field(default_factory=set)

    @property
    def holder(self) -> Holder:
        return Holder(self.name, str(self.start))

    @property
    def able(self) -> bool:
        return self.alive and not self.hung


class World(RuleBasedStateMachine):
    """etcd, one leader, three engines, one daemon."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.epoch, self.revision = 1, 1
        self.token: Token | None = None
        self.seat: Seat | None = None
        self.history: list[View] = []
        self.engines = {name: Engine(name) for name in NAMES}
        self.unproven: list[Engine] = []
        self.numbers: dict[Holder, int] = {}
        self.entered: dict[str, int] = {}
        self.closed: dict[str, int] = {}
        self.tickets = 0
        self.generation = 0
        self.record = Record()
        self.start_daemon()
        self.push()
        self.watch()
        self.populate()

    # --- the world -------------------------------------------------------------------------------------------------

    @property
    def epoch_id(self) -> str:
        return f"e{self.epoch}"

    def push(self) -> None:
        self.history.append(View(self.epoch_id, self.revision, self.seat, self.token))

    def commit(self) -> None:
        self.revision += 1

    def owner(self, engine: Engine) -> Owner:
        number = self.numbers.setdefault(engine.holder, len(self.numbers) + 1)
        return Owner(engine.holder, number)

    def start_daemon(self) -> None:
        """From what it persisted: the record and the owners, nothing else."""
        owners = {}
        if self.generation:
            owners = {owner: self.pool.extents_of(owner) for owner in self.pool.owners}
        self.generation += 1
        stored = msgspec.json.encode(self.record)
        self.fences = Fences(msgspec.json.decode(stored, type=Record))
        self.pool = Pool(CAPACITY, CHUNK, self.generation)
        self.created: set[int] = set()
        for owner, extents in owners.items():
            self.pool.adopt(owner, extents)
        self.seen = max(0, len(self.history) - 1)

    def living(self, holder: Holder) -> bool:
        known = [*self.engines.values(), *self.unproven]
        lives = any(e.holder == holder and (e.alive or e in self.unproven) for e in known)
        return lives or self.pool.held_by(holder) > 0

    def settle(self) -> None:
        kill = self.fences.advance(self.living, self.now)
        self.check_reclaimed()
        if kill is not None:
            for engine in self.engines.values():
                if engine.holder == kill.holder and engine.alive:
                    self.die(engine)
        self.record = self.fences.record

    def check_reclaimed(self) -> None:
        """A reclaim that is over has left nothing of its target."""
        view, record = self.fences.view, self.fences.record
        if view is None or view.seat is None or view.epoch != record.epoch or view.seat.order != RECLAIM:
            return
        over = record.closed == view.seat.revision and not self.fences.regressed
        assert not (over and self.living(view.seat.holder)), "reclaimed, but not dead"

    def die(self, engine: Engine) -> None:
        engine.alive = False
        self.unproven.append(_remains(engine))
        engine.mapped = set()
        engine.working = False

    def published(self) -> Record | None:
        return self.fences.record if self.fences.publishable else None

    def ready(self) -> bool:
        """PROTOCOL rule 3."""
        state = self.published()
        seat = self.seat.revision if self.seat is not None else 0
        return state is not None and state.epoch == self.epoch_id and state.closed >= seat

    # --- the leader ------------------------------------------------------------------------------------------------

    @rule(name=names, order=st.sampled_from([RESTORE, OFFLOAD]), size=st.integers(0, CAPACITY))
    def grant(self, name: str, order: str, size: int) -> None:
        engine = self.engines[name]
        if not (self.ready() and engine.alive and engine.leased):
            return
        self.commit()
        self.seat = Seat(engine.holder, self.revision, order, size, LIMIT)
        self.token = Token(engine.holder, self.revision)
        engine.fence = (self.epoch_id, self.revision)
        self.push()

    @rule(
        name=names,
        order=st.sampled_from([RESTORE, RESTORE, OFFLOAD]),
        size=st.integers(1, CAPACITY),
        lag=st.sampled_from([0, 0, 0, 1, 2]),
        thief=names,
        whole=st.booleans(),
        restart=st.sampled_from([False, False, True]),
    )
    def switch(self, name: str, order: str, size: int, lag: int, thief: str, whole: bool, restart: bool) -> None:
        """What usually happens, so that all the rest happens in the midst of it."""
        if restart:
            self.start_daemon()
        self.fair_round()
        self.start_engine(name)
        self.register_again(name)
        self.grant(name, order, size)
        self.catch_up(lag)
        self.enter_with_any_fence(thief, 0, 0)
        self.enter(name)
        if order == OFFLOAD:
            self.unmap(name, size)
        else:
            self.map(name, size)
        if whole:
            fence = self.engines[name].fence
            self.leave(name)
            self.repeat(name, fence)

    def repeat(self, name: str, fence: tuple[str, int] | None) -> None:
        """The call comes twice, the second time when all is over; its token may still stand."""
        if fence is not None and self.engines[name].able:
            self.try_enter(self.engines[name], *fence)

    @rule()
    def reclaim(self) -> None:
        """Rule 10, of whoever holds the seat: premature is safe."""
        state = self.published()
        if self.seat is None or state is None or state.epoch != self.epoch_id or self.seat.order == RECLAIM:
            return
        self.commit()
        self.seat = Seat(self.seat.holder, self.revision, RECLAIM, 0, LIMIT)
        self.token = None
        self.push()

    # --- engines ---------------------------------------------------------------------------------------------------

    @rule(name=names)
    def enter(self, name: str) -> None:
        engine = self.engines[name]
        if engine.able and engine.fence is not None:
            self.try_enter(engine, *engine.fence)

    @rule(name=names, epoch=st.sampled_from([0, 0, 0, 1]), back=st.integers(-2, 5))
    def enter_with_any_fence(self, name: str, epoch: int, back: int) -> None:
        """Delayed, repeated, another's or made up."""
        engine = self.engines[name]
        if engine.able:
            self.try_enter(engine, f"e{self.epoch - epoch}", max(1, self.revision - back))

    def try_enter(self, engine: Engine, epoch: str, revision: int) -> None:
        before = self.fences.record
        verdict = self.fences.enter(engine.holder, epoch, revision, self.now)
        if isinstance(verdict, Accept):
            self.check_accepted(engine, epoch, revision, before)
            engine.working, engine.fence = True, (epoch, revision)
            self.record = self.fences.record
        elif isinstance(verdict, Refuse):
            assert verdict.code is Code.STALE
            if engine.fence == (epoch, revision):
                engine.fence = None

    def check_accepted(self, engine: Engine, epoch: str, revision: int, before: Record) -> None:
        if before.open is not None:
            assert (before.epoch, before.open.revision) == (epoch, revision), "accepted over an open operation"
            assert before.open.holder == engine.holder, "another's operation was joined"
            return
        assert revision > self.entered.get(epoch, 0), "entered fences do not increase"
        assert revision > self.closed.get(epoch, 0), "a closed fence was accepted"
        view = self.history[self.seen]
        assert view.token == Token(engine.holder, revision), "accepted what its own view does not show"
        assert view.epoch == epoch, "accepted in another epoch"
        self.entered[epoch] = revision

    @rule(name=names, count=st.integers(1, CAPACITY))
    def map(self, name: str, count: int) -> None:
        engine = self.engines[name]
        if not engine.able:
            return
        opened = self.fences.opened(engine.holder)
        if not isinstance(opened, Open):
            return
        self.tickets += 1
        try:
            chunks = self.pool.take(self.owner(engine), Kind.WEIGHTS, count, self.tickets, opened.bytes)
        except (Shortage, Pending):
            return
        assert self.created >= set(chunks), "a chunk was given that the daemon has no handle of"
        pinned = {chunk for other in self.everybody() for chunk in other.mapped}
        assert not pinned & set(chunks), "a page has two owners"
        engine.mapped |= set(chunks)
        assert len(engine.mapped) <= opened.bytes, "more than was granted"

    @rule(name=names, count=st.integers(1, CAPACITY))
    def unmap(self, name: str, count: int) -> None:
        engine = self.engines[name]
        if engine.able and isinstance(self.fences.opened(engine.holder), Open):
            chunks = sorted(engine.mapped)[:count]
            engine.mapped -= set(chunks)
            self.pool.give_back(self.owner(engine), chunks)

    @rule(name=names)
    def leave(self, name: str) -> None:
        engine = self.engines[name]
        if engine.able and engine.working and engine.fence is not None:
            refused = self.fences.leave(engine.holder, *engine.fence)
            assert refused is None, refused
            engine.working, engine.fence = False, None
            self.settle()

    # --- faults ----------------------------------------------------------------------------------------------------

    @rule(name=names)
    def lose_lease(self, name: str) -> None:
        engine = self.engines[name]
        engine.leased = False
        if self.token is not None and self.token.holder == engine.holder:
            self.commit()
            self.token = None
            self.push()

    @rule(name=names)
    def register_again(self, name: str) -> None:
        engine = self.engines[name]
        if engine.able:
            engine.leased = True

    @rule(name=names)
    def hang(self, name: str) -> None:
        self.engines[name].hung = True

    @rule(name=names)
    def crash(self, name: str) -> None:
        if self.engines[name].alive:
            self.die(self.engines[name])

    @rule()
    def prove_death(self) -> None:
        if self.unproven:
            dead = self.unproven.pop(0)
            dead.mapped.clear()
            self.pool.release(self.owner(dead))
            self.settle()

    @rule(name=names)
    def start_engine(self, name: str) -> None:
        old = self.engines[name]
        old.hung = False
        if not old.alive:
            self.lose_lease(name)
            self.engines[name] = Engine(name, old.start + 1)

    @rule(lag=st.integers(0, 3))
    def catch_up(self, lag: int) -> None:
        """The daemon hears of all but the last revisions."""
        for _ in range(len(self.history) - 1 - self.seen - lag):
            self.watch()

    @rule()
    def watch(self) -> None:
        """The daemon hears of the next revision."""
        if self.fences.view is not None and self.seen < len(self.history) - 1:
            self.seen += 1
        self.fences.observe(self.history[self.seen])
        self.settle()

    @rule()
    def populate(self) -> None:
        while self.pool.debt:
            self.created.add(self.pool.grow())
        self.fences.agree()

    @rule(at_once=st.booleans())
    def restart_daemon(self, at_once: bool) -> None:
        self.start_daemon()
        self.settle()
        if at_once:
            self.populate()
            self.watch()

    @rule(seconds=st.sampled_from([1.0, LIMIT]))
    def time(self, seconds: float) -> None:
        self.now += seconds
        self.settle()

    @precondition(lambda self: self.epoch < 3)
    @rule(hang=st.booleans())
    def lose_store(self, hang: bool) -> None:
        """etcd's data is gone: revisions begin again, every lease is void (rule 13)."""
        for engine in self.engines.values():
            engine.hung |= hang and engine.working
        self.epoch, self.revision = self.epoch + 1, 1
        self.token = self.seat = None
        for engine in self.engines.values():
            engine.leased = False
        self.push()

    # --- what must hold --------------------------------------------------------------------------------------------

    def everybody(self) -> list[Engine]:
        return [*self.engines.values(), *self.unproven]

    @invariant()
    def capacity_holds(self) -> None:
        assert sum(len(engine.mapped) for engine in self.everybody()) <= CAPACITY

    @invariant()
    def every_page_that_is_mapped_is_charged(self) -> None:
        for engine in self.everybody():
            charged = sum(self.pool.bytes_of(self.owner(engine)).values())
            assert charged >= len(engine.mapped) * CHUNK

    @invariant()
    def closed_only_grows(self) -> None:
        record = self.fences.record
        assert record.closed >= self.closed.get(record.epoch, 0)
        self.closed[record.epoch] = record.closed

    @invariant()
    def what_works_is_open_or_over(self) -> None:
        """No two engines are in a memory operation."""
        record = self.fences.record
        working = [e for e in self.engines.values() if e.working and isinstance(self.fences.opened(e.holder), Open)]
        assert len(working) <= 1
        assert record.open is None or record.open.revision > record.closed

    def teardown(self) -> None:
        """Liveness: fair steps, no more faults, and the leader reclaims what does not answer."""
        for _ in range(10):
            self.fair_round()
        assert self.fences.publishable
        assert self.fences.record.open is None
        assert self.ready(), (self.fences.record, self.seat)

    def fair_round(self) -> None:
        if self.seat is not None and not self.ready() and self.hopeless(self.seat.holder):
            self.reclaim()
        self.populate()
        self.watch()
        self.catch_up(0)
        self.time(LIMIT)
        for engine in self.engines.values():
            self.enter(engine.name)
            self.leave(engine.name)
        while self.unproven:
            self.prove_death()

    def hopeless(self, holder: Holder) -> bool:
        return not any(engine.holder == holder and engine.able for engine in self.engines.values())


def _remains(engine: Engine) -> Engine:
    """What the dead process still pins."""
    return Engine(engine.name, engine.start, False, engine.hung, engine.leased, None, False, set(engine.mapped))


World.TestCase.settings = settings(
    max_examples=max(300, settings.default.max_examples if settings.default else 0),
    stateful_step_count=50,
    suppress_health_check=[HealthCheck.too_slow],
)
TestFences = World.TestCase
