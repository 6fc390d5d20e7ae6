"""Any events in any order, true or not: the scheduler never breaks, its ledger agrees with itself, and what it grants
is allowed by what it has been told (rule 3, recomputed here from scratch)."""

from __future__ import annotations

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.core.commands import Command, Grant, Reclaim, Refuse, Route
from coordinator.core.events import (
    Changed,
    DecisionSeen,
    DemandSeen,
    DeviceSeen,
    EpochSeen,
    Event,
    Fact,
    Granted,
    GrantRefused,
    LeadershipGained,
    LeadershipLost,
    Listed,
    LoadSeen,
    OrderAsked,
    PolicySeen,
    Reconfigured,
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
    Order,
    Owner,
    Phase,
    Policy,
    Residency,
    Seat,
    Spec,
    Token,
)
from coordinator.core.scheduler import Scheduler
from coordinator.core.settings import Settings

ENGINES = st.sampled_from(("a", "b", "c"))
DEVICES = st.sampled_from(("n/0", "n/1"))
EPOCHS = st.sampled_from(("e1", "e1", "e1", "e2"))
REVISIONS = st.integers(0, 12)
HOLDERS = st.builds(Holder, engine=ENGINES, nonce=st.sampled_from(("n1", "n1", "n1", "n2")))
BYTES = st.builds(Bytes, weights=st.integers(0, 60), kv=st.integers(0, 20), overhead=st.sampled_from((0, 0, 5)))
MAYBE = st.none()
PHASES = st.sampled_from((*Phase, Phase.OFFLOADED, Phase.OFFLOADED, Phase.RESIDENT))
SEATS = st.builds(
    Seat, holder=HOLDERS, lease=st.just(1), order=st.sampled_from(list(Order)), bytes=st.just(1), limit_s=st.just(9.0)
)
TOKENS = st.builds(
    Token,
    holder=HOLDERS,
    lease=st.sampled_from((1, 2)),
    order=st.sampled_from((Order.RESTORE, Order.OFFLOAD)),
    bytes=st.just(1),
)
OWNERS = st.lists(st.builds(Owner, holder=HOLDERS, bytes=BYTES, alive=st.booleans()), max_size=3).map(tuple)


def facts_at(revision: int) -> st.SearchStrategy[Fact]:
    at = st.just(revision)
    specs = st.builds(
        Spec,
        holder=HOLDERS,
        model=st.sampled_from(("a", "b", "c")),
        url=st.just("u"),
        devices=st.sampled_from((("n/0",), ("n/1",), ("n/0", "n/1"))),
        pid=st.just(1),
        boot_id=st.just("b"),
        footprint=BYTES,
        measured=st.booleans(),
    )
    residencies = st.builds(
        Residency,
        holder=HOLDERS,
        phase=PHASES,
        fence=st.one_of(MAYBE, st.builds(Fence, epoch=EPOCHS, revision=REVISIONS)),
        busy=st.booleans(),
        error=st.sampled_from(("", "", "denied")),
    )
    states = st.builds(
        Device,
        driver=st.just("host"),
        capacity=st.just(100),
        chunk=st.sampled_from((1, 8)),
        epoch=EPOCHS,
        closed=REVISIONS,
        owners=OWNERS,
    )
    policies = st.builds(
        Policy, pin=st.sampled_from((None, True)), drained=st.booleans(), keep_alive=st.sampled_from((None, 0.0))
    )
    loads = st.builds(Load, running=st.integers(0, 2), waiting=st.integers(0, 2))
    return st.one_of(
        st.builds(SpecSeen, ENGINES, st.one_of(MAYBE, specs), at, st.sampled_from((1, 2))),
        st.builds(ResidencySeen, ENGINES, st.one_of(MAYBE, residencies), at),
        st.builds(LoadSeen, ENGINES, st.one_of(MAYBE, loads), at),
        st.builds(DeviceSeen, DEVICES, st.one_of(MAYBE, states), at),
        st.builds(TokenSeen, DEVICES, st.one_of(MAYBE, TOKENS), at),
        st.builds(SeatSeen, DEVICES, st.one_of(MAYBE, SEATS), at),
        st.builds(EpochSeen, st.one_of(MAYBE, st.builds(Epoch, id=EPOCHS)), at),
        st.builds(PolicySeen, st.sampled_from(("a", "b")), st.one_of(MAYBE, policies), at),
        st.builds(
            DemandSeen,
            st.just("far"),
            st.sampled_from(("a", "b", "c")),
            st.one_of(MAYBE, st.just(Demand(waiting=2)), st.just(Demand(waiting=0, keep_alive=0.0))),
        ),
        st.builds(DecisionSeen, st.integers(0, 9)),
    )


def registered(engine: str, *devices: str) -> tuple[Fact, ...]:
    holder = Holder(engine, "n1")
    spec = Spec(
        holder=holder, model=engine, url="u", devices=devices, pid=1, boot_id="b", footprint=Bytes(weights=60)
    )  # fmt: skip
    said = Residency(holder=holder, phase=Phase.OFFLOADED)
    return SpecSeen(engine, spec, 1, 1), ResidencySeen(engine, said, 1)  # type: ignore[arg-type]


BEGINNING: tuple[Fact, ...] = (
    EpochSeen(Epoch(id="e1"), 1),
    *(DeviceSeen(d, Device(driver="host", capacity=100, chunk=1, epoch="e1"), 1) for d in ("n/0", "n/1")),  # type: ignore[arg-type]
    *registered("a", "n/0"),
    *registered("b", "n/0"),
    *registered("c", "n/0", "n/1"),
)
WANTED = st.builds(
    DemandSeen, st.just("here"), st.sampled_from(("a", "b", "c")), st.one_of(MAYBE, st.just(Demand(waiting=1)))
)
OTHERS = st.one_of(
    WANTED,
    WANTED,
    st.builds(LeadershipGained, st.just("k"), REVISIONS),
    st.builds(LeadershipLost),
    st.builds(Granted, st.integers(1, 3), REVISIONS),
    st.builds(GrantRefused, st.integers(1, 6), st.just("no")),
    st.builds(OrderAsked, st.sampled_from(("a", "b", "c")), st.sampled_from(list(Order))),
    st.builds(
        Reconfigured,
        st.builds(Settings, keep_alive=st.sampled_from((None, 0.0, 5.0)), pin=st.booleans()),
        st.just({}),
        st.sampled_from(("lru", "landlord", "cost_aware")),
        st.just({}),
        st.sampled_from((None, "lru")),
        st.booleans(),
    ),
    st.builds(Tick),
)


@st.composite
def stories(draw: st.DrawFn) -> list[Event]:
    """A leader in a sane world, and then anything; revisions mostly rise."""
    revision = 1
    events: list[Event] = [Listed(BEGINNING, revision), LeadershipGained("k", 1)]
    for _ in range(draw(st.integers(0, 25))):
        what = draw(st.integers(0, 9))
        if what < 4:
            revision += draw(st.sampled_from((1, 1, 1, 1, 0, 3)))
            facts = st.lists(facts_at(revision), min_size=1, max_size=4 if what else 10)
            events.append((Changed if what else Listed)(tuple(draw(facts)), revision))
        else:
            events.append(draw(OTHERS))
    return events


class Told:
    """What the scheduler was told, kept in the simplest way, to judge its grants by."""

    def __init__(self) -> None:
        self.revision = 0
        self.epoch: str | None = None
        self.states: dict[str, Device] = {}
        self.leading = False

    def hear(self, event: Event) -> None:
        match event:
            case Listed():
                self.states, self.epoch, self.revision = {}, None, event.revision
                for fact in event.facts:
                    self._take(fact)
            case Changed() if event.revision > self.revision:
                self.revision = event.revision
                for fact in event.facts:
                    self._take(fact)
            case LeadershipGained():
                self.leading = True
            case LeadershipLost():
                self.leading = False
            case _:
                pass

    def _take(self, fact: Fact) -> None:
        if isinstance(fact, DeviceSeen):
            self.states.pop(fact.device, None)
            if fact.state is not None:
                self.states[fact.device] = fact.state
        elif isinstance(fact, EpochSeen):
            self.epoch = fact.epoch.id if fact.epoch is not None else None

    def judge(self, command: Command, seat_of: dict[str, int]) -> None:
        if isinstance(command, Route):
            return
        assert self.leading
        if isinstance(command, Refuse):
            return
        assert command.epoch == self.epoch
        for at in command.seats:
            state = self.states[at.device]
            assert state.epoch == self.epoch
            assert at.revision == seat_of.get(at.device, 0)
            if isinstance(command, Grant):
                assert state.closed >= at.revision
        if isinstance(command, Grant) and command.order is Order.RESTORE:
            for at in command.seats:
                state = self.states[at.device]
                others = [owner.bytes for owner in state.owners if owner.holder != command.holder]
                assert sum(held.weights + held.kv + held.overhead for held in others) + command.bytes <= state.capacity


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(stories(), st.sampled_from((0.0, 0.5, 11.0)))
def test_any_events_in_any_order(events: list[Event], step: float) -> None:
    scheduler = Scheduler(Settings(keep_alive=5.0, min_residency=1.0))
    told, now = Told(), 100.0
    for event in events:
        now += step
        told.hear(event)
        commands = scheduler.handle(event, now)
        scheduler.check()
        seats = {device.id: device.seat_revision for device in scheduler.view().devices}
        busy: set[str] = set()
        for command in commands:
            told.judge(command, seats)
            if isinstance(command, Grant | Reclaim):
                assert not busy & {at.device for at in command.seats}
                busy |= {at.device for at in command.seats}
        assert msgspec.msgpack.encode(commands)
        deadline = scheduler.deadline()
        assert deadline is None or deadline > now, "it would be called again at once, for ever"
