"""The leader's transactions: composed here, and remembered until they are answered.

No two of them are under way on one device, and after one that failed its devices rest until something is seen to change
there, or for `Limits.retry_s`: a transaction fails because the picture is old, or because etcd is away.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from coordinator.core.commands import Grant, Reclaim, SeatAt
from coordinator.core.entries import EngineEntry, pages
from coordinator.core.events import Fact, SeatSeen, TokenSeen
from coordinator.core.ledger import Ledger
from coordinator.core.model import Candidate, Decision, DeviceId, EngineId, Holder, Order, Phase, Seat, Token
from coordinator.core.settings import Limits
from coordinator.core.victims import MOST_CANDIDATES

ESTIMATE_SLACK = 10
"""Percent by which an engine may exceed an estimated footprint (DESIGN §4), where there is room."""
_MOST_TEXT = 4000


class Lead(msgspec.Struct, frozen=True):
    """This process leads: what every transaction compares."""

    key: str
    revision: int


class Why(msgspec.Struct, frozen=True):
    """What a decision keeps of its reasons; see `Decision`."""

    cause: str
    candidates: tuple[Candidate, ...] = ()
    wanted: str = ""
    policy: str = ""
    shadow: str = ""


class Orders:
    """Numbers and composes commands; knows which are unanswered."""

    def __init__(self, limits: Limits, next_decision: int) -> None:
        self._limits = limits
        self.next_decision = next_decision
        self._next_id = 1
        self.pending: dict[int, Grant | Reclaim] = {}
        self._busy: dict[DeviceId, int] = {}
        self._rest: dict[DeviceId, float] = {}

    def number_above(self, n: int) -> None:
        """Decision `n` stands already."""
        self.next_decision = max(self.next_decision, n + 1)

    def blocked(self, device: DeviceId, now: float) -> str:
        """Why no transaction may be sent for `device` now; empty: one may."""
        if device in self._busy:
            return f"transaction {self._busy[device]} on {device} is not answered yet"
        return f"a transaction on {device} failed just now" if now < self._rest.get(device, 0.0) else ""

    def asked(self, device: DeviceId, holder: Holder | None) -> bool:
        """Whether an unanswered transaction on `device` is about `holder`."""
        return device in self._busy and self.pending[self._busy[device]].holder == holder

    def rests_until(self, device: DeviceId) -> float:
        """When `device` may be tried again after a failure."""
        return self._rest.get(device, 0.0)

    def changed(self, devices: Iterable[DeviceId]) -> None:
        """Something was seen to change on `devices`: the picture is new, they need not rest."""
        for device in devices:
            self._rest.pop(device, None)

    def overtaken(self, ledger: Ledger, devices: Iterable[DeviceId]) -> None:
        """A seat newer than a transaction compares was seen: it has taken effect, and this is it, or it never will.
        So a lost answer need not be waited for."""
        for id_ in {self._busy[device] for device in devices if device in self._busy}:
            if any(ledger.device(at.device).fence > at.revision for at in self.pending[id_].seats):
                self.answered(id_)

    def answered(self, id_: int) -> Grant | Reclaim | None:
        """The command that this answers; None: it was given up."""
        command = self.pending.pop(id_, None)
        for seat in command.seats if command is not None else ():
            self._busy.pop(seat.device, None)
        return command

    def current(self, command: Grant | Reclaim, ledger: Ledger) -> bool:
        """Whether the spec it was composed from is still the newest there is; of seats, see `overtaken`."""
        engine = ledger.registered(command.holder)
        return isinstance(command, Reclaim) or (engine is not None and engine.spec_revision == command.spec_revision)

    def failed(self, command: Grant | Reclaim, now: float) -> None:
        for seat in command.seats:
            self._rest[seat.device] = now + self._limits.retry_s

    def give_up(self) -> None:
        """Expect no answers any more, and believe none: leadership or the store's life has ended, and what was sent in
        it fails by its compares or shows in the watch."""
        self.pending.clear()
        self._busy.clear()
        self._rest.clear()

    def grant(self, lead: Lead, ledger: Ledger, engine: EngineEntry, order: Order, why: Why) -> Grant | None:
        """PROTOCOL rule 2; the caller has seen to rule 3. None: the engine or the epoch is not known."""
        if engine.spec is None or ledger.epoch is None:
            return None
        grant = Grant(
            id=self._next_id,
            order=order,
            holder=engine.spec.holder,
            lease=engine.lease,
            spec_revision=engine.spec_revision,
            epoch=ledger.epoch,
            election_key=lead.key,
            election_revision=lead.revision,
            seats=_seats(ledger, engine.devices),
            bytes=allowance(ledger, engine) if order is Order.RESTORE else 0,
            limit_s=self._limit(engine, order),
            decision=self._decision(order, engine.id, engine.devices, why),
        )
        self._send(grant)
        return grant

    def reclaim(
        self, lead: Lead, ledger: Ledger, holder: Holder, devices: tuple[DeviceId, ...], cause: str
    ) -> Reclaim | None:
        """PROTOCOL rule 10. None: the epoch is not known."""
        if ledger.epoch is None:
            return None
        reclaim = Reclaim(
            id=self._next_id,
            holder=holder,
            epoch=ledger.epoch,
            election_key=lead.key,
            election_revision=lead.revision,
            seats=_seats(ledger, devices),
            limit_s=self._limits.reclaim_s,
            decision=self._decision(Order.RECLAIM, holder.engine, devices, Why(cause)),
        )
        self._send(reclaim)
        return reclaim

    def number(self, order: Order, engine: EngineId, devices: tuple[str, ...], why: Why) -> tuple[int, Decision]:
        """Id and decision of a transaction that is kept elsewhere."""
        id_, decision = self._next_id, self._decision(order, engine, devices, why)
        self._next_id += 1
        self.next_decision += 1
        return id_, decision

    def _send(self, command: Grant | Reclaim) -> None:
        self._next_id += 1
        self.next_decision += 1
        self.pending[command.id] = command
        for seat in command.seats:
            self._busy[seat.device] = command.id

    def _limit(self, engine: EngineEntry, order: Order) -> float:
        if order is Order.OFFLOAD:
            return self._limits.offload_s
        return self._limits.startup_s if engine.phase is Phase.STARTING else self._limits.restore_s

    def _decision(self, order: Order, engine: str, devices: tuple[str, ...], why: Why) -> Decision:
        """`at` stays 0: whoever carries it out stamps it."""
        return Decision(
            n=self.next_decision,
            at=0.0,
            order=order,
            engine=engine,
            devices=devices,
            cause=why.cause[:_MOST_TEXT],
            candidates=why.candidates[:MOST_CANDIDATES],
            wanted=why.wanted,
            policy=why.policy,
            shadow=why.shadow[:_MOST_TEXT],
        )


def effects_of(command: Grant | Reclaim, revision: int) -> list[Fact]:
    """What stands in etcd once `command` took effect at `revision`, ahead of the watch."""
    facts: list[Fact] = []
    for at in command.seats:
        facts.append(SeatSeen(at.device, _seat(command), revision))
        facts.append(TokenSeen(at.device, _token(command), revision))
    return facts


def allowance(ledger: Ledger, engine: EngineEntry) -> int:
    """`Token.bytes`: what it may hold on each of its devices afterwards. An estimate may be exceeded by
    `ESTIMATE_SLACK` percent, as far as there is room."""
    if engine.spec is None:
        return 0
    needs, most = [0], []
    for device in engine.devices:
        state = ledger.device(device).state
        if state is None:
            continue
        need = pages(engine.spec.footprint, state.chunk)
        slack = 0 if engine.spec.measured else need * ESTIMATE_SLACK // 100 // max(1, state.chunk) * state.chunk
        room = state.capacity - ledger.others(engine, device) - engine.spec.footprint.overhead
        needs.append(need)
        most.append(min(need + slack, room))
    return max(*needs, min(most, default=0))


def _seats(ledger: Ledger, devices: tuple[DeviceId, ...]) -> tuple[SeatAt, ...]:
    return tuple(SeatAt(device, ledger.device(device).fence) for device in devices)


def _seat(command: Grant | Reclaim) -> Seat:
    if isinstance(command, Reclaim):
        return Seat(holder=command.holder, lease=0, order=Order.RECLAIM, bytes=0, limit_s=command.limit_s)
    return Seat(
        holder=command.holder, lease=command.lease, order=command.order, bytes=command.bytes, limit_s=command.limit_s
    )


def _token(command: Grant | Reclaim) -> Token | None:
    if isinstance(command, Reclaim):
        return None
    return Token(
        holder=command.holder,
        lease=command.lease,
        order=command.order,
        bytes=command.bytes,
        cause=command.decision.cause,
    )
