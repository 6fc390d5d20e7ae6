"""A key and its bytes become a fact, or are put into quarantine: counted, shown, never obeyed.

A value that does not decode counts as gone, so that a change and a listing tell the same; nothing is granted on what
is not known (PROTOCOL rule 3). A key that is no spelling of ours (another escape of the same id) is nobody's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from coordinator.core.events import (
    Changed,
    DecisionSeen,
    DemandSeen,
    DeviceSeen,
    EpochSeen,
    Fact,
    Listed,
    LoadSeen,
    PolicySeen,
    ProcessOrderSeen,
    ProcessSeen,
    RefusalSeen,
    ResidencySeen,
    SeatSeen,
    SpecSeen,
    TokenSeen,
)
from coordinator.core.model import (
    Decision,
    Demand,
    Device,
    DeviceId,
    EngineId,
    Epoch,
    Load,
    ModelId,
    Policy,
    Refusal,
    Residency,
    Seat,
    Spec,
    Token,
    Value,
)
from coordinator.core.process import Process, ProcessOrder
from coordinator.errors import SchemaError
from coordinator.store import keys
from coordinator.store.base import Change, Changes, KeyValue, Listing
from coordinator.store.codec import decode

MAX_ID = 256
"""Characters, as `core.model.Name`."""
MAX_REASON = 300

V = TypeVar("V", bound=Value)


class Quarantined(msgspec.Struct, frozen=True):
    """A value that means nothing to us. `gone` is the fact that holds instead; None where the key is no fact's."""

    key: str
    revision: int
    size: int
    reason: str
    gone: Fact | None


class Reader:
    """Turns what a watch yields into events for the core. `quarantined` is what stands in etcd now and does not
    decode, by key; `rejected` counts all that ever came."""

    def __init__(self) -> None:
        self.quarantined: dict[str, Quarantined] = {}
        self.rejected = 0

    def listed(self, listing: Listing) -> Listed:
        self.quarantined.clear()
        return Listed(self._read(Change(kv.key, kv, kv.mod_revision) for kv in listing.kvs), listing.revision)

    def changed(self, changes: Changes) -> Changed:
        return Changed(self._read(changes.changes), changes.revision)

    def _read(self, changes: Iterable[Change]) -> tuple[Fact, ...]:
        facts = (self._judge(change) for change in changes)
        return tuple(fact for fact in facts if fact is not None)

    def _judge(self, change: Change) -> Fact | None:
        self.quarantined.pop(change.key, None)
        fact = of_change(change)
        if isinstance(fact, Quarantined):
            self.quarantined[fact.key] = fact
            self.rejected += 1
            return fact.gone
        return fact


def of_kv(kv: KeyValue) -> Fact | Quarantined | None:
    """None where the key is no fact's: heartbeat, election, and what newer versions write."""
    return of_change(Change(kv.key, kv, kv.mod_revision))


def of_change(change: Change) -> Fact | Quarantined | None:
    """As `of_kv`; a deleted key is the fact that it is gone."""
    reading = _Reading(change)
    if not change.key.startswith(keys.ROOT):
        return None
    try:
        return _fact(change.key.removeprefix(keys.ROOT).split("/"), reading)
    except SchemaError as error:
        size = len(change.kv.value) if change.kv else 0
        return Quarantined(change.key, change.revision, size, str(error)[:MAX_REASON], reading.gone)


class _Reading:
    """One change on its way to a fact."""

    def __init__(self, change: Change) -> None:
        self.revision = change.revision
        self.lease = change.kv.lease if change.kv else 0
        self.gone: Fact | None = None
        self._key = change.key
        self._data = change.kv.value if change.kv else None

    def ids(self, spell: Callable[..., str], *segments: str) -> list[str]:
        """The unescaped ids. Raises `SchemaError` where `spell` would write the key otherwise."""
        ids = [keys.unescape(segment) for segment in segments]
        try:
            canonical = all(0 < len(one) <= MAX_ID for one in ids) and spell(*ids) == self._key
        except UnicodeEncodeError:  # the key is no UTF-8
            canonical = False
        if not canonical:
            raise SchemaError("the key is not spelt as ids are escaped")
        return ids

    def value(self, kind: type[V], gone: Fact | None) -> V | None:
        """None where the key is gone. Raises `SchemaError`, and then `gone` holds."""
        self.gone = gone
        return None if self._data is None else decode(kind, self._data)


def _fact(segments: list[str], reading: _Reading) -> Fact | None:
    match segments:
        case ["epoch"]:
            return EpochSeen(reading.value(Epoch, EpochSeen(None, reading.revision)), reading.revision)
        case ["engines", engine, "spec" | "residency" | "load" as kind]:
            return _of_engine(kind, engine, reading)
        case ["nodes", node, "devices", device]:
            return _of_device("devices", node, device, reading)
        case ["nodes", node, "engines", engine]:
            at, named = reading.ids(keys.process, node, engine)
            its = EngineId(named)
            gone = ProcessSeen(at, its, None, reading.revision)
            return ProcessSeen(at, its, reading.value(Process, gone), reading.revision)
        case ["processes", engine]:
            its = EngineId(*reading.ids(keys.process_order, engine))
            nothing = ProcessOrderSeen(its, None, reading.revision)
            return ProcessOrderSeen(its, reading.value(ProcessOrder, nothing), reading.revision)
        case ["tokens" | "seats" as kind, node, device]:
            return _of_device(kind, node, device, reading)
        case ["policy", model]:
            of = ModelId(*reading.ids(keys.policy, model))
            return PolicySeen(of, reading.value(Policy, PolicySeen(of, None, reading.revision)), reading.revision)
        case ["demand", gateway, model]:
            at, wanted = reading.ids(keys.demand, gateway, model)
            of = ModelId(wanted)
            return DemandSeen(at, of, reading.value(Demand, DemandSeen(at, of, None)))
        case ["refusals", model]:
            of = ModelId(*reading.ids(keys.refusal, model))
            return RefusalSeen(of, reading.value(Refusal, RefusalSeen(of, None)))
        case ["decisions", _]:
            decision = reading.value(Decision, None)
            return DecisionSeen(decision.n) if decision is not None else None
        case _:
            return None


def _of_engine(kind: str, segment: str, reading: _Reading) -> Fact:
    revision = reading.revision
    if kind == "spec":
        engine = EngineId(*reading.ids(keys.spec, segment))
        spec = reading.value(Spec, SpecSeen(engine, None, revision))
        return SpecSeen(engine, _own(spec, engine), revision, reading.lease)
    if kind == "residency":
        engine = EngineId(*reading.ids(keys.residency, segment))
        residency = reading.value(Residency, ResidencySeen(engine, None, revision))
        return ResidencySeen(engine, _own(residency, engine), revision)
    engine = EngineId(*reading.ids(keys.load, segment))
    return LoadSeen(engine, reading.value(Load, LoadSeen(engine, None, revision)), revision)


S = TypeVar("S", Spec, Residency)


def _own(value: S | None, engine: EngineId) -> S | None:
    """etcd's RBAC holds a writer to its prefix; this holds the value to it too."""
    if value is not None and value.holder.engine != engine:
        raise SchemaError(f"the value speaks for engine {value.holder.engine!r}")
    return value


def _of_device(kind: str, node: str, device: str, reading: _Reading) -> Fact:
    spell = {"devices": keys.device, "tokens": keys.token, "seats": keys.seat}[kind]
    of = DeviceId("/".join(reading.ids(lambda n, d: spell(f"{n}/{d}"), node, device)))
    revision = reading.revision
    if kind == "devices":
        return DeviceSeen(of, reading.value(Device, DeviceSeen(of, None, revision)), revision)
    if kind == "tokens":
        return TokenSeen(of, reading.value(Token, TokenSeen(of, None, revision)), revision)
    return SeatSeen(of, reading.value(Seat, SeatSeen(of, None, revision)), revision)
