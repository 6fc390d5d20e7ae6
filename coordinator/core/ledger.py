"""Who holds which bytes, and since when: the scheduler's only mutable picture of the world.

Invariants (`check` holds them in tests, after every step):

- what is charged on a device is its published owners, nothing else; residency never counts bytes (PROTOCOL rule 4);
- an order counts within one life of the store: a new epoch forgets what was ordered, never what is owned (rule 13);
- a key never goes back: a seat or token of a lower revision than the one known changes nothing, so a late or repeated
  delivery is harmless, and an own grant may be entered as soon as its answer is there, before the watch shows it;
- a listing is a new ledger (`core.listing`): what it does not name is gone, what stays keeps its times;
- every index is what a walk over all entries would give, so that an event costs what it touches and no more.
"""

from __future__ import annotations

import msgspec

from coordinator.core.entries import DeviceEntry, EngineEntry, by_holder, chargeable, overhead, pages, rounded
from coordinator.core.events import DeviceSeen, EpochSeen, Fact, LoadSeen, ResidencySeen, SeatSeen, SpecSeen, TokenSeen
from coordinator.core.ledger_check import check
from coordinator.core.model import (
    Bytes,
    Device,
    DeviceId,
    EngineId,
    Fence,
    Holder,
    Load,
    ModelId,
    Phase,
    Residency,
    Seat,
    Token,
)
from coordinator.core.processes import Processes


class Touched(msgspec.Struct):
    """What the last facts may have changed."""

    models: set[ModelId] = set()
    devices: set[DeviceId] = set()


class Ledger:
    """See the module. Reads are free for all; only the scheduler writes, by `apply`."""

    def __init__(self) -> None:
        self.epoch: str | None = None
        self.revision = 0
        self.engines: dict[EngineId, EngineEntry] = {}
        self.devices: dict[DeviceId, DeviceEntry] = {}
        self.models: dict[ModelId, set[EngineId]] = {}
        self.processes = Processes()
        self._places: dict[Holder, set[DeviceId]] = {}
        """Where a holder owns pages or has the seat."""
        self._touched = Touched()

    # ---- writes

    def apply(self, fact: Fact, now: float) -> None:
        """One fact; facts that are not the ledger's change nothing."""
        self._touched.models.update(self.processes.apply(fact, now))
        match fact:
            case SpecSeen():
                self._spec(fact, now)
            case ResidencySeen():
                self._residency(fact, now)
            case LoadSeen():
                self._load(fact, now)
            case DeviceSeen():
                self._state(fact, now)
            case TokenSeen():
                self._token(fact)
            case SeatSeen():
                self._seat(fact, now)
            case EpochSeen():
                self._set_epoch(fact.epoch.id if fact.epoch is not None else None)
            case _:
                pass

    def restart_limits(self, now: float) -> None:
        """A new leader waits anew (PROTOCOL rules 10 and 12)."""
        for entry in self.devices.values():
            entry.seat_at = now
            entry.lost_at = dict.fromkeys(entry.lost_at, now)

    def used(self, model: ModelId, now: float) -> None:
        """Requests for it were somewhere just now."""
        for entry in self.engines_of(model):
            entry.active_at = now

    def touch_all(self, old: Ledger) -> None:
        """Everything here and in `old` may have changed."""
        self._touched.models.update(self.models, old.models, self.processes.models, old.processes.models)
        self._touched.devices.update(self.devices, old.devices)

    def take_touched(self) -> Touched:
        touched, self._touched = self._touched, Touched()
        return touched

    # ---- reads

    def device(self, device: DeviceId) -> DeviceEntry:
        """Its entry; an empty one (not kept) where nothing is known."""
        return self.devices.get(device) or DeviceEntry(id=device)

    def engines_of(self, model: ModelId) -> list[EngineEntry]:
        """Engines whose spec names `model`, in order of id."""
        ids = self.models.get(model, ())
        return [self.engines[engine] for engine in (sorted(ids) if len(ids) > 1 else ids)]

    def registered(self, holder: Holder) -> EngineEntry | None:
        """The engine whose spec names this very process; None: the process is lost."""
        entry = self.engines.get(EngineId(holder.engine))
        return entry if entry is not None and entry.holder == holder else None

    def blocked(self, device: DeviceId) -> str:
        """Why nothing may be granted on it (PROTOCOL rule 3); empty: it is ready."""
        entry = self.device(device)
        if self.epoch is None:
            return "the store has no epoch yet"
        if entry.state is None:
            return f"the daemon of {device} is not there"
        if not entry.present(self.epoch):
            return f"the daemon of {device} is not in the store's epoch yet"
        if entry.state.closed > self.revision:
            return f"the store is older than what the daemon of {device} has seen: a snapshot was restored"
        if not entry.closed(self.epoch):
            holder = entry.seat.holder.engine if entry.seat is not None else "?"
            return f"an operation of {holder} is under way on {device}"
        return ""

    def need(self, engine: EngineEntry, device: DeviceId) -> int:
        """Bytes the engine takes of this device when resident, its overhead included; without its weights where another
        engine of the same content is charged for them."""
        state = self.device(device).state
        if engine.spec is None or state is None:
            return rounded(engine.spec.footprint, 1) if engine.spec is not None else 0
        return rounded(engine.spec.footprint, state.chunk) - self._shared(engine, device, state)

    def _shared(self, engine: EngineEntry, device: DeviceId, state: Device) -> int:
        """Bytes of its weights that lie on the device and are not its own."""
        if not state.shared or engine.spec is None or engine.spec.footprint.weights == 0:
            return 0
        held = self.device(device).held.get(engine.spec.holder, Bytes())
        digest = engine.spec.digest_on(device)
        found = next((shared.bytes for shared in state.shared if shared.digest == digest), 0) if digest else 0
        return min(found, pages(Bytes(weights=engine.spec.footprint.weights), state.chunk)) if not held.weights else 0

    def others(self, engine: EngineEntry, device: DeviceId) -> int:
        """Bytes that everyone else takes of this device: owners, and overheads of other engines' processes that live
        there though their pages are away."""
        entry = self.device(device)
        holder = engine.holder
        own = chargeable(entry.held[holder]) if holder is not None and holder in entry.held else 0
        return entry.charged - own + entry.overhead - entry.overheads.get(engine.id, 0)

    def owned(self, engine: EngineEntry) -> tuple[DeviceId, ...]:
        """Those of its devices on which it owns pages."""
        holder = engine.holder
        held = {device: self.device(device).held.get(holder) for device in engine.devices} if holder is not None else {}
        return tuple(device for device, bytes_ in held.items() if bytes_ is not None and bytes_.weights + bytes_.kv)

    def places(self, holder: Holder) -> tuple[DeviceId, ...]:
        """Every device on which `holder` owns pages or has the seat."""
        return tuple(sorted(self._places.get(holder, ())))

    # ---- engines

    def _engine(self, engine: EngineId, now: float) -> EngineEntry:
        return self.engines.setdefault(engine, EngineEntry(id=engine, first_seen=now, active_at=now))

    def _prune(self, entry: EngineEntry) -> None:
        if entry.spec is None and entry.residency is None and not entry.working:
            self.engines.pop(entry.id, None)

    def _touch(self, entry: EngineEntry) -> None:
        if entry.model is not None:
            self._touched.models.add(entry.model)
        self._touched.devices.update(entry.devices)

    def _touch_holder(self, holder: Holder) -> None:
        entry = self.registered(holder)
        if entry is not None and entry.model is not None:
            self._touched.models.add(entry.model)

    def _spec(self, fact: SpecSeen, now: float) -> None:
        entry = self._engine(fact.engine, now)
        before = entry.holder
        self._touch(entry)
        self._unlist(entry)
        if fact.spec is not None and fact.spec.holder != before:
            self._reset(entry, now)
        entry.spec, entry.spec_revision, entry.lease = fact.spec, fact.revision, fact.lease
        self._list(entry)
        self._touch(entry)
        for holder in {before, entry.holder} - {None}:
            if holder is not None:
                self._lost(holder, now)
        self._prune(entry)

    def _reset(self, entry: EngineEntry, now: float) -> None:
        """Another process than before, or the same one after its keys were gone: only seats know what it was told."""
        entry.first_seen = entry.active_at = now
        entry.resident_since = now if entry.residency is not None else 0.0
        entry.ordered, entry.ordered_revision, entry.judged = None, 0, 0
        entry.failures, entry.retry_at = 0, 0.0

    def _list(self, entry: EngineEntry) -> None:
        if entry.spec is None:
            return
        self.models.setdefault(ModelId(entry.spec.model), set()).add(entry.id)
        for device in entry.devices:
            place = self._device(device)
            place.engines.add(entry.id)
            place.weigh(entry.id, overhead(entry, place))
            if place.seat is not None and place.seat.holder == entry.holder:
                self._remember(entry, place.seat, place.seat_revision)

    def _unlist(self, entry: EngineEntry) -> None:
        if entry.model is None:
            return
        engines = self.models[entry.model]
        engines.discard(entry.id)
        if not engines:
            del self.models[entry.model]
        for device in entry.devices:
            place = self.devices[device]
            place.engines.discard(entry.id)
            place.weigh(entry.id, 0)
            self._forget(place)

    def _lost(self, holder: Holder, now: float) -> None:
        """Since when this owner has been without spec."""
        lost = self.registered(holder) is None
        for device in self.places(holder):
            entry = self.devices[device]
            if lost and holder in entry.held:
                entry.lost_at.setdefault(holder, now)
            else:
                entry.lost_at.pop(holder, None)
            self._touched.devices.add(device)

    def _residency(self, fact: ResidencySeen, now: float) -> None:
        entry = self._engine(fact.engine, now)
        before, after = entry.residency, fact.residency
        if _resident(after) is not None and _resident(after) != _resident(before):
            entry.resident_since = entry.active_at = now
        entry.residency, entry.residency_revision, entry.residency_at = after, fact.revision, now
        for device in entry.devices:
            self.devices[device].weigh(entry.id, overhead(entry, self.devices[device]))
        self._touch(entry)
        self._prune(entry)

    def _load(self, fact: LoadSeen, now: float) -> None:
        if fact.load is None and fact.engine not in self.engines:
            return
        entry = self._engine(fact.engine, now)
        worked = entry.working
        entry.load = fact.load if fact.load is not None else Load()
        entry.active_at = now
        if worked != entry.working:
            self._touch(entry)
        self._prune(entry)

    # ---- devices

    def _device(self, device: DeviceId) -> DeviceEntry:
        return self.devices.setdefault(device, DeviceEntry(id=device))

    def _forget(self, entry: DeviceEntry) -> None:
        """Drop an entry that says nothing any more; its tombstones only matter while something is there."""
        if entry.state is None and entry.seat is None and entry.token is None and not entry.engines:
            self.devices.pop(entry.id, None)

    def _state(self, fact: DeviceSeen, now: float) -> None:
        entry = self._device(fact.device)
        before, after = entry.state, fact.state
        if _closed(after) != _closed(before):
            entry.closed_at = now
        if before is None or after is None or before.epoch != after.epoch:
            entry.seat_at = now
            self._touched.models.update(m for e in entry.engines if (m := self.engines[e].model) is not None)
        holders = set(entry.held)
        entry.state, entry.held = after, dict(by_holder(after))
        entry.charged = sum(chargeable(held) for held in entry.held.values())
        for holder in sorted(holders | set(entry.held)):
            self._place(holder, entry)
            self._lost(holder, now)
            self._touch_holder(holder)
            engine = self.registered(holder)
            if engine is not None and engine.id in entry.engines:
                entry.weigh(engine.id, overhead(engine, entry))
        if entry.seat is not None:
            self._touch_holder(entry.seat.holder)
        self._touched.devices.add(entry.id)
        self._forget(entry)

    def _token(self, fact: TokenSeen) -> None:
        entry = self._device(fact.device)
        if fact.revision <= entry.token_revision:
            return
        self._touch_seated(entry.token, fact.token)
        entry.token, entry.token_revision = fact.token, fact.revision
        self._touched.devices.add(entry.id)
        self._forget(entry)

    def _seat(self, fact: SeatSeen, now: float) -> None:
        entry = self._device(fact.device)
        if fact.revision <= entry.seat_revision:
            return
        before = entry.seat
        self._touch_seated(before, fact.seat)
        entry.seat, entry.seat_revision, entry.seat_at = fact.seat, fact.revision, now
        for seat in (before, fact.seat):
            if seat is not None:
                self._place(seat.holder, entry)
        engine = self.registered(fact.seat.holder) if fact.seat is not None else None
        if engine is not None and fact.seat is not None:
            self._remember(engine, fact.seat, fact.revision)
        self._touched.devices.add(entry.id)
        self._forget(entry)

    def _touch_seated(self, *seated: Seat | Token | None) -> None:
        for each in seated:
            if each is not None:
                self._touch_holder(each.holder)

    def _remember(self, engine: EngineEntry, seat: Seat, revision: int) -> None:
        if revision > engine.ordered_revision:
            engine.ordered, engine.ordered_revision = seat.order, revision

    def _place(self, holder: Holder, entry: DeviceEntry) -> None:
        """Keep the index of places true for one holder and one device."""
        there = holder in entry.held or (entry.seat is not None and entry.seat.holder == holder)
        places = self._places.setdefault(holder, set())
        if there:
            places.add(entry.id)
        else:
            places.discard(entry.id)
            entry.lost_at.pop(holder, None)
        if not places:
            del self._places[holder]

    def _set_epoch(self, epoch: str | None) -> None:
        if epoch == self.epoch:
            return
        self.epoch = epoch
        for engine in self.engines.values():
            engine.ordered, engine.ordered_revision = None, 0
        self._touched.models.update(self.models)
        self._touched.devices.update(self.devices)

    def check(self) -> None:
        """Raises LedgerBroken if an index or a sum is not what a walk over all entries gives."""
        check(self.engines, self.devices, self.models, self._places)


def _resident(residency: Residency | None) -> tuple[Holder, Fence | None] | None:
    """Who is resident and since which fence."""
    if residency is None or residency.phase is not Phase.RESIDENT:
        return None
    return residency.holder, residency.fence


def _closed(state: Device | None) -> tuple[str, int] | None:
    return (state.epoch, state.closed) if state is not None else None
