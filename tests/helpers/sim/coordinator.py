"""A coordinator: the real scheduler behind an inbox, its effects, its gateway, its election."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from coordinator.core.commands import Command, Endpoint, Grant, Reclaim, Refuse, Route
from coordinator.core.events import (
    Changed,
    DemandSeen,
    Event,
    Granted,
    GrantRefused,
    LeadershipGained,
    LeadershipLost,
    Listed,
    OrderAsked,
    Tick,
)
from coordinator.core.model import Demand, Order, Seat, Token
from coordinator.core.scheduler import Scheduler
from coordinator.core.settings import DECISION_RING
from tests.helpers.sim.clockwork import Clockwork
from tests.helpers.sim.daemon import Violated
from tests.helpers.sim.engine import Request
from tests.helpers.sim.etcd import Etcd, Key

_events = msgspec.msgpack.Decoder(Event)
_commands = msgspec.msgpack.Decoder(Command)
ELECTION = "election"


def round_trip(event: Event) -> Event:
    """Every event passes through msgspec, as it would in a log."""
    decoded = _events.decode(msgspec.msgpack.encode(event))
    if decoded != event:
        raise Violated(f"{event!r} does not survive msgspec")
    return decoded


class SimCoordinator:
    """One process. `on_grant` is told of every transaction that took effect, before it is applied."""

    def __init__(
        self,
        clockwork: Clockwork,
        etcd: Etcd,
        id_: str,
        scheduler: Scheduler,
        admit: Callable[[Endpoint, Request], bool],
        on_grant: Callable[[Grant | Reclaim], None],
        ended: Callable[[Request, str], None],
    ) -> None:
        self.clockwork = clockwork
        self.etcd = etcd
        self.id = id_
        self.scheduler = scheduler
        self.admit = admit
        self.on_grant = on_grant
        self.ended = ended
        self.leading = False
        self.term = 0
        self.terms = 0
        self._listings = 0
        self.away = 0.0
        """Until when its transactions fail as if etcd were away, or lose their answers (`lossy`)."""
        self.lossy = 0.0
        self.lease = etcd.lease()
        self.routes: Mapping[str, Route] = {}
        self.waiting: dict[str, list[Request]] = {}
        self.unanswered: dict[str, Grant | Reclaim] = {}
        self.sent: list[Grant | Reclaim] = []
        self.refusals: list[tuple[float, Refuse]] = []
        self._tick_at: float | None = None
        self._demand_due: set[str] = set()
        self.watch = etcd.watch(self.handle, self._lag)

    def _lag(self) -> float:
        return self.etcd.rng.choice((0.0, 0.001, 0.02, 0.3))

    # ---- inbox

    def handle(self, event: Event) -> None:
        for command in self.scheduler.handle(round_trip(event), self.clockwork.now):
            if _commands.decode(msgspec.msgpack.encode(command)) != command:
                raise Violated(f"{command!r} does not survive msgspec")
            self._perform(command)
        self.scheduler.check()
        self._listings += isinstance(event, Listed)
        if isinstance(event, Changed) and self.etcd.rng.random() < 0.05:
            again, listings = event, self._listings
            twice = self.etcd.rng.uniform(0.0, 1.0)
            self.clockwork.after(twice, lambda: self.handle(again) if listings == self._listings else None)
        self._arm()

    def _arm(self) -> None:
        at = self.scheduler.deadline()
        if at is not None and (self._tick_at is None or at < self._tick_at):
            self._tick_at = at
            self.clockwork.after(max(0.0, at - self.clockwork.now), self._tick)

    def _tick(self) -> None:
        self._tick_at = None
        at = self.scheduler.deadline()
        if at is not None and at <= self.clockwork.now:
            self.handle(Tick())
        else:
            self._arm()

    # ---- effects

    def _perform(self, command: Command) -> None:
        match command:
            case Route():
                self._route(command)
            case Refuse():
                self._lead_only(command)
                self.refusals.append((self.clockwork.now, command))
                if [at for at, _ in self.refusals[-50:]].count(self.clockwork.now) == 50:
                    raise Violated(f"{command.model} is refused without end")
                for request in self.waiting.pop(command.model, []):
                    self.ended(request, "refused")
                self._post(command.model)
            case Grant() | Reclaim():
                self._lead_only(command)
                self._one_at_a_time(command)
                self.sent.append(command)
                self.clockwork.after(self.etcd.rng.choice((0.0, 0.002, 0.1)), lambda: self._commit(command))

    def _lead_only(self, command: Command) -> None:
        if not self.leading:
            raise Violated(f"{self.id} does not lead and orders {command!r}")

    def _one_at_a_time(self, command: Grant | Reclaim) -> None:
        """While one may still take effect, no other is sent for its devices."""
        for seat in command.seats:
            before = self.unanswered.get(seat.device)
            if before is not None and _life(before) == _life(command) and self._open(before):
                raise Violated(f"two transactions at once on {seat.device}")
            self.unanswered[seat.device] = command

    def _open(self, command: Grant | Reclaim) -> bool:
        """Whether its seats are as it compares them."""
        return all(self.etcd.mod(("seat", at.device)) == at.revision for at in command.seats)

    def _commit(self, command: Grant | Reclaim) -> None:
        now, rng = self.clockwork.now, self.etcd.rng
        refused = GrantRefused(command.id, "etcd is away") if now < self.away else self._try(command)
        delay = rng.uniform(0.5, 3.0) if now < self.lossy else rng.choice((0.0, 0.002, 0.3))
        self.clockwork.after(delay, lambda: self._answer(command, refused))

    def _answer(self, command: Grant | Reclaim, event: Granted | GrantRefused) -> None:
        for seat in command.seats:
            if self.unanswered.get(seat.device) is command:
                del self.unanswered[seat.device]
        self.handle(event)

    def _try(self, command: Grant | Reclaim) -> Granted | GrantRefused:
        """PROTOCOL rule 2."""
        etcd = self.etcd
        row = etcd.rows.get((ELECTION,))
        holds = row is not None and row.created == command.election_revision and row.value == command.election_key
        holds = holds and etcd.epoch == command.epoch
        holds = holds and all(etcd.mod(("seat", at.device)) == at.revision for at in command.seats)
        if isinstance(command, Grant):
            holds = holds and etcd.mod(("spec", command.holder.engine)) == command.spec_revision
            holds = holds and command.lease in etcd.leases
        if not holds:
            return GrantRefused(command.id, "a compare failed")
        self.on_grant(command)
        revision = etcd.txn(_writes(command))
        return Granted(command.id, revision) if revision is not None else GrantRefused(command.id, "a lease is dead")

    # ---- election

    def campaign(self) -> bool:
        """Lead if nobody does."""
        if self.etcd.get((ELECTION,)) is not None:
            return False
        if self.lease not in self.etcd.leases:
            self.lease = self.etcd.lease()
        revision = self.etcd.txn([((ELECTION,), self.id, self.lease)])
        if revision is None:
            return False
        self.leading = True
        self.term = revision
        self.terms += 1
        self.handle(LeadershipGained(self.id, revision))
        return True

    def resign_late(self, delay: float) -> None:
        """Its election key is gone; it hears of it only later and orders on in the meantime."""
        self.etcd.revoke(self.lease)
        self.register_again()
        terms = self.terms  # not its revision: another store may come to the same number

        def hear() -> None:
            if self.leading and self.terms == terms:
                self.leading = False
                self.handle(LeadershipLost())

        self.clockwork.after(delay, hear)

    def register_again(self) -> None:
        """Its lease is gone, and its gateway's keys with it."""
        for model in sorted(self.waiting):
            self._post(model)

    def ask(self, model: str, order: Order) -> None:
        self.handle(OrderAsked(model, order))

    # ---- gateway

    def request(self, request: Request) -> None:
        endpoints = self.routes[request.model].endpoints if request.model in self.routes else ()
        for endpoint in endpoints:
            if self.admit(endpoint, request):
                return
        self.waiting.setdefault(request.model, []).append(request)
        self._post(request.model)

    def _route(self, route: Route) -> None:
        self.routes = {**self.routes, route.model: route}
        if route.endpoints:
            for request in self.waiting.pop(route.model, []):
                self.request(request)
            self._post(route.model)

    def _post(self, model: str) -> None:
        """At once to the own scheduler; a little later to etcd, for the leader if that is another."""
        demand = Demand(waiting=len(self.waiting[model])) if self.waiting.get(model) else None
        self.clockwork.after(0.0, lambda: self.handle(DemandSeen(self.id, model, demand)))
        if model not in self._demand_due:
            self._demand_due.add(model)
            self.clockwork.after(0.1, lambda: self._put_demand(model))

    def _put_demand(self, model: str) -> None:
        self._demand_due.discard(model)
        if self.lease not in self.etcd.leases:
            self.lease = self.etcd.lease()
        demand = Demand(waiting=len(self.waiting[model])) if self.waiting.get(model) else None
        key = ("demand", self.id, model)
        if self.etcd.get(key) != demand:
            self.etcd.txn([(key, demand, self.lease)])


def _life(command: Grant | Reclaim) -> tuple[str, int]:
    return command.epoch, command.election_revision


def _writes(command: Grant | Reclaim) -> list[tuple[Key, object | None, int]]:
    writes: list[tuple[Key, object | None, int]] = []
    for at in command.seats:
        if isinstance(command, Grant):
            holder, lease, order, size = command.holder, command.lease, command.order, command.bytes
            token = Token(holder=holder, lease=lease, order=order, bytes=size, cause=command.decision.cause)
            writes.append((("token", at.device), token, lease))
        else:
            holder, lease, order, size = command.holder, 0, Order.RECLAIM, 0
            writes.append((("token", at.device), None, 0))
        seat = Seat(holder=holder, lease=lease, order=order, bytes=size, limit_s=command.limit_s)
        writes.append((("seat", at.device), seat, 0))
    n = command.decision.n % DECISION_RING
    writes.append((("decision", str(n)), command.decision, 0))
    return writes
