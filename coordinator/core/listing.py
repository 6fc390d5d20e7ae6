"""A listing replaces all that was known: a new ledger, into which what stays brings its times."""

from __future__ import annotations

from coordinator.core.entries import DeviceEntry, EngineEntry
from coordinator.core.events import EpochSeen, Fact
from coordinator.core.ledger import Ledger
from coordinator.core.model import Fence, Phase


def relisted(old: Ledger, facts: tuple[Fact, ...], revision: int, now: float) -> Ledger:
    """The ledger that `facts` describe as of `revision`. An engine or seat that is the same as in `old` keeps its
    times, so that a watch that broke restarts no limit and no idle time."""
    new = Ledger()
    for fact in sorted(facts, key=lambda fact: not isinstance(fact, EpochSeen)):
        new.apply(fact, now)
    new.revision = revision
    new.processes.carry(old.processes)
    same_life = new.epoch == old.epoch
    for engine in new.engines.values():
        before = old.engines.get(engine.id)
        if before is not None and before.holder == engine.holder:
            _carry_engine(before, engine, same_life=same_life)
    for device in new.devices.values():
        if same_life and device.id in old.devices:
            _carry_device(old.devices[device.id], device)
    new.touch_all(old)
    return new


def _carry_engine(old: EngineEntry, new: EngineEntry, *, same_life: bool) -> None:
    new.first_seen, new.failures, new.retry_at = old.first_seen, old.failures, old.retry_at
    if not new.working and not old.working:
        new.active_at = old.active_at
    if new.phase is Phase.RESIDENT and old.phase is Phase.RESIDENT and _fence(new) == _fence(old):
        new.resident_since = old.resident_since
    if new.residency == old.residency:
        new.residency_at = old.residency_at
    if same_life:
        new.judged = old.judged
        if old.ordered_revision > new.ordered_revision:
            new.ordered, new.ordered_revision = old.ordered, old.ordered_revision


def _carry_device(old: DeviceEntry, new: DeviceEntry) -> None:
    if old.state is not None and new.state is not None and old.state.closed == new.state.closed:
        new.closed_at = old.closed_at
    if old.state is not None and new.state is not None and old.seat_revision == new.seat_revision:
        new.seat_at = old.seat_at
    for holder in new.lost_at:
        new.lost_at[holder] = old.lost_at.get(holder, new.lost_at[holder])


def _fence(engine: EngineEntry) -> Fence | None:
    return engine.residency.fence if engine.residency is not None else None
