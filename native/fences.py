"""One device's fence: who may change its memory now, and what is over. PURE: events in, verdicts out, time as argument.

PROTOCOL rules 6-11 and 13. The order that keeps them:

- a fence (epoch, revision) is entered only where the daemon's *own* view of etcd shows the token, and nothing is open;
- `closed` only grows within an epoch, and everything at or below it is refused for ever;
- what is open ends by `leave` or by proven death of its holder with its pages back: never by a lease, never by time;
- a seat that was never entered and whose token is gone is closed, otherwise its device would wait for ever;
- a `reclaim` seat kills its target, waits until nothing of it lives or holds pages, then closes.

The shell persists `record` before it lets anybody know of a change of it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from native.protocol import Code

RESTORE = "restore"
OFFLOAD = "offload"
RECLAIM = "reclaim"


class Holder(msgspec.Struct, frozen=True, order=True):
    """An engine and the nonce of this start of it."""

    engine: str
    nonce: str

    def __str__(self) -> str:
        return f"{self.engine} ({self.nonce[:8]})"


class Seat(msgspec.Struct, frozen=True):
    """What was granted last; `revision` is the mod_revision of its key: the fence."""

    holder: Holder
    revision: int
    order: str
    bytes: int
    limit_s: float


class Token(msgspec.Struct, frozen=True):
    holder: Holder
    revision: int


class View(msgspec.Struct, frozen=True):
    """What the daemon's own watch shows of one device, whole up to `revision`. `epoch` is empty where there is none."""

    epoch: str
    revision: int
    seat: Seat | None = None
    token: Token | None = None


class Open(msgspec.Struct, frozen=True):
    """The operation that is open: entered, and not yet left. `bytes` is what its holder may hold here afterwards."""

    holder: Holder
    revision: int
    order: str
    bytes: int
    limit_s: float


class Record(msgspec.Struct, frozen=True):
    """What must survive a restart of the daemon. `seen` is a lower bound of the newest revision seen in `epoch`."""

    epoch: str = ""
    closed: int = 0
    seen: int = 0
    open: Open | None = None


class Accept(msgspec.Struct, frozen=True):
    open: Open


class Wait(msgspec.Struct, frozen=True):
    """Ask again when something changed."""

    why: str


class Refuse(msgspec.Struct, frozen=True):
    code: Code
    why: str


class Kill(msgspec.Struct, frozen=True):
    """SIGKILL every process of `holder`; asked again for as long as it lives."""

    holder: Holder
    why: str


Verdict = Accept | Wait | Refuse
Living = Callable[[Holder], bool]
"""Whether a holder is still to be reckoned with here: a process of it lives, or pages of it are not back."""


class Fences:
    """The state machine of one device. All changes go through `observe`, `agree`, `enter`, `withdraw`, `leave`
    and `advance`."""

    def __init__(self, record: Record | None = None) -> None:
        self.record = record if record is not None else Record()
        self.view: View | None = None
        self.agreed = False
        self.regressed = False
        self._opened_at: float | None = None

    def observe(self, view: View) -> None:
        """The watch brought a new view; a lower revision in the same epoch is a restored snapshot (rule 13)."""
        record = self.record
        if view.epoch != record.epoch:
            self.regressed = False
        elif view.revision < record.seen:
            self.regressed = True
        else:
            self.record = msgspec.structs.replace(record, seen=view.revision)
        self.view = view

    @property
    def lasting(self) -> tuple[Record, bool]:
        """What is kept, but for how far etcd was seen; and whether it may be shown."""
        return msgspec.structs.replace(self.record, seen=0), self.publishable

    @property
    def stand(self) -> tuple[int, int, Open | None]:
        """What was granted last, what was closed last, and what is open."""
        granted = self.view.seat.revision if self.view is not None and self.view.seat is not None else 0
        return granted, self.record.closed, self.record.open

    def agree(self) -> None:
        """Pages measured after a (re)start agree with the ledger (rule 11)."""
        self.agreed = True

    @property
    def publishable(self) -> bool:
        """The device key may stand in etcd: listed, in agreement, in the store's epoch (rules 11 and 13)."""
        view = self.view
        return view is not None and self.agreed and not self.regressed and view.epoch == self.record.epoch != ""

    def enter(self, holder: Holder, epoch: str, revision: int, now: float) -> Verdict:
        """PROTOCOL rule 6. On `Accept` the operation is open: persist before saying so. Entering again what the caller
        has open already is accepted: its first answer may have been lost."""
        record, view = self.record, self.view
        current = record.open
        if current is not None and (epoch, revision, holder) == (record.epoch, current.revision, current.holder):
            return Accept(current)
        if epoch == record.epoch and revision <= max(record.closed, current.revision if current else 0):
            return Refuse(Code.STALE, f"fence {revision} is over: closed {record.closed}")
        if view is None:
            return Wait("the daemon has not yet listed etcd")
        if self.regressed:
            return Refuse(
                Code.STALE, "etcd's revision went back (a snapshot was restored): delete epoch, tokens, seats"
            )
        if epoch != view.epoch:
            return Refuse(Code.STALE, f"epoch {epoch!r} is not this store's")
        if view.revision < revision:
            return Wait(f"the daemon's view is at revision {view.revision}")
        seat, token = view.seat, view.token
        if token is None or seat is None or not token.revision == seat.revision == revision or token.holder != holder:
            return Refuse(Code.STALE, f"fence {revision} is not the token of {holder}")
        return self._admit(seat, now)

    def _admit(self, seat: Seat, now: float) -> Verdict:
        record = self.record
        if self.view is None or record.epoch != self.view.epoch:
            return Wait("an operation of the old epoch is not over")
        if record.open is not None:
            return Wait(f"{record.open.holder} has fence {record.open.revision} open")
        if not self.agreed:
            return Wait("the pool is not yet in agreement with the ledger")
        opened = Open(seat.holder, seat.revision, seat.order, seat.bytes, seat.limit_s)
        self.record = msgspec.structs.replace(record, open=opened)
        self._opened_at = now
        return Accept(opened)

    def leave(self, holder: Holder, epoch: str, revision: int) -> Refuse | None:
        """PROTOCOL rule 8, first case. None: nothing of the caller is open under that fence any more."""
        record = self.record
        current = record.open
        if current is not None and epoch == record.epoch and revision == current.revision:
            if current.holder != holder:
                return Refuse(Code.NOT_OPEN, f"fence {revision} is open for {current.holder}")
            self._close(revision)
            return None
        if epoch != record.epoch or revision <= record.closed:
            return None
        return Refuse(Code.NOT_OPEN, f"fence {revision} was never entered")

    def withdraw(self, opened: Open) -> None:
        """An `Accept` that could not be persisted and was never answered: as if it had not been."""
        if self.record.open == opened:
            self.record = msgspec.structs.replace(self.record, open=None)
            self._opened_at = None

    def opened(self, holder: Holder) -> Open | Refuse:
        """PROTOCOL rule 7: the operation under which `holder` may map and unmap now."""
        current = self.record.open
        if current is None or current.holder != holder:
            return Refuse(Code.NOT_OPEN, f"no operation of {holder} is open")
        return current

    def advance(self, living: Living, now: float) -> Kill | None:
        """Do what follows from what is known: close what is over (rules 8-10), take on a new epoch (rule 13); return
        whom to kill. Call after every event and at `deadline`."""
        current = self.record.open
        if current is not None and self._opened_at is None:
            self._opened_at = now
        if current is not None and not living(current.holder):
            self._close(current.revision)
        view = self.view
        if view is None or self.regressed or not view.epoch:
            return None
        if view.epoch != self.record.epoch:
            return self._change_epoch(view, now)
        return self._follow_seat(view, living)

    def deadline(self) -> float | None:
        """When `advance` has something to do though nothing happens: an operation of an old epoch is over its limit."""
        view, current = self.view, self.record.open
        if view is None or current is None or self._opened_at is None or view.epoch in ("", self.record.epoch):
            return None
        return self._opened_at + current.limit_s

    def _change_epoch(self, view: View, now: float) -> Kill | None:
        deadline = self.deadline()
        if self.record.open is None:
            self.record = Record(epoch=view.epoch, seen=view.revision)
            return None
        if deadline is not None and now >= deadline:
            return Kill(self.record.open.holder, "its operation outlived the store's epoch and its limit")
        return None

    def _follow_seat(self, view: View, living: Living) -> Kill | None:
        seat, record = view.seat, self.record
        if seat is None or seat.revision <= record.closed:
            return None
        if seat.order == RECLAIM:
            if living(seat.holder):
                return Kill(seat.holder, f"reclaimed by seat {seat.revision}")
            if record.open is None:
                self._close(seat.revision)
            return None
        if record.open is None and (view.token is None or view.token.revision != seat.revision):
            self._close(seat.revision)
        return None

    def _close(self, revision: int) -> None:
        record = self.record
        closed = max(record.closed, revision)
        self.record = msgspec.structs.replace(record, closed=closed, seen=max(record.seen, closed), open=None)
        self._opened_at = None
