"""What the ledger's indexes and sums must be: what a walk over all its entries gives. Tests ask after every step."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.core.entries import DeviceEntry, EngineEntry, chargeable, overhead
from coordinator.core.model import DeviceId, EngineId, Holder, ModelId
from coordinator.errors import VnpuError


class LedgerBroken(VnpuError):
    """The ledger contradicts itself: a defect of the scheduler, never of the world."""


def check(
    engines: Mapping[EngineId, EngineEntry],
    devices: Mapping[DeviceId, DeviceEntry],
    models: Mapping[ModelId, set[EngineId]],
    places: Mapping[Holder, set[DeviceId]],
) -> None:
    """`models`: engines by model; `places`: where a holder owns pages or has the seat. Raises LedgerBroken."""
    for entry in devices.values():
        _device(entry, engines)
    named: dict[ModelId, set[EngineId]] = {}
    for engine in engines.values():
        if engine.model is not None:
            named.setdefault(engine.model, set()).add(engine.id)
    _same("models", models, named)
    there: dict[Holder, set[DeviceId]] = {}
    for entry in devices.values():
        for holder in [*entry.held, *([entry.seat.holder] if entry.seat is not None else [])]:
            there.setdefault(holder, set()).add(entry.id)
    _same("places", places, there)


def _device(entry: DeviceEntry, engines: Mapping[EngineId, EngineEntry]) -> None:
    owners = entry.state.owners if entry.state is not None else ()
    _same(f"charged on {entry.id}", entry.charged, sum(chargeable(owner.bytes) for owner in owners))
    named = {engine.id for engine in engines.values() if entry.id in engine.devices}
    _same(f"engines of {entry.id}", entry.engines, named)
    weighed = {id_: taken for id_ in entry.engines if (taken := overhead(engines[id_], entry))}
    _same(f"overheads of {entry.id}", (entry.overheads, entry.overhead), (weighed, sum(weighed.values())))
    registered = {engine.holder for engine in engines.values()}
    lost = {holder for holder in entry.held if holder not in registered}
    _same(f"lost owners of {entry.id}", set(entry.lost_at), lost)


def _same(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise LedgerBroken(f"{what}: {found!r} where the entries say {wanted!r}")
