"""Who waits for what: requests at gateways, and the queue of those that need a device.

The queue is first in, first out by the time at which waiting began, and a place is kept until its model is resident, so
a restore that fails does not cost the place. A start-up queues `Limits.startup_delay_s` behind requests that came at
the same time: it waits behind them, but never for ever.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec

from coordinator.core.events import DemandSeen
from coordinator.core.model import DeviceId, EngineId, ModelId

K = TypeVar("K")
N = TypeVar("N", int, float)
Table = dict[ModelId, dict[str, N]]
"""By model, what each gateway says of it."""


class Demand:
    """Requests that wait at gateways, by model, and how long they want it kept. A gateway that posts in this process is
    believed at once, and its key in etcd no more: the key lags."""

    def __init__(self) -> None:
        self._counts: dict[ModelId, dict[str, int]] = {}
        self._keeps: dict[ModelId, dict[str, float]] = {}
        self._local: set[str] = set()

    def post(self, event: DemandSeen) -> set[ModelId]:
        """A gateway in this process says how many wait. Returns the models concerned: more than the one where a gateway
        of the same name stood in etcd."""
        models = {event.model}
        if event.gateway not in self._local:
            self._local.add(event.gateway)
            models |= {model for table in (self._counts, self._keeps) for model in table}
            self._counts = {model: rest for model, c in self._counts.items() if (rest := _without(c, event.gateway))}
            self._keeps = {model: left for model, k in self._keeps.items() if (left := _without(k, event.gateway))}
        self._set(event)
        return models

    def see(self, fact: DemandSeen) -> None:
        """A gateway's key."""
        if fact.gateway not in self._local:
            self._set(fact)

    def forget_seen(self) -> set[ModelId]:
        """Before a listing is entered: only what was posted in this process stays. Returns the models."""
        known = {*self._counts, *self._keeps}
        self._counts = self._posted(self._counts)
        self._keeps = self._posted(self._keeps)
        return known

    def waiting(self, model: ModelId) -> int:
        said = self._counts.get(model)
        return sum(said.values()) if said else 0

    def kept(self, model: ModelId) -> float | None:
        """How long requests want it kept when idle, in seconds: of what the gateways say the longest, infinity where
        that is until its memory is needed. None: no request has said anything."""
        said = self._keeps.get(model)
        return max(math.inf if keep < 0 else keep for keep in said.values()) if said else None

    @property
    def models(self) -> frozenset[ModelId]:
        """Models for which something waits."""
        return frozenset(self._counts)

    def _posted(self, table: Table[N]) -> Table[N]:
        """What of it was said by gateways in this process."""
        return {
            model: posted
            for model, said in table.items()
            if (posted := {gateway: each for gateway, each in said.items() if gateway in self._local})
        }

    def _set(self, event: DemandSeen) -> None:
        demand = event.demand
        _put(self._counts, event, demand.waiting or None if demand is not None else None)
        _put(self._keeps, event, demand.keep_alive if demand is not None else None)


class Waiter(msgspec.Struct, frozen=True):
    """A place in the queue: of a model that any of its engines can serve, or of one engine (see `core.attend`).

    `due` orders the queue: when waiting began, plus the handicap of a start-up; `tie` decides between equals."""

    model: ModelId
    engine: EngineId | None
    since: float
    due: float
    tie: tuple[int, int, str]
    devices: tuple[DeviceId, ...]

    @property
    def key(self) -> tuple[str, str]:
        return (self.model, self.engine or "")


class Queue:
    """All that wait, found by device."""

    def __init__(self) -> None:
        self._waiters: dict[tuple[str, str], Waiter] = {}
        self._on: dict[DeviceId, set[tuple[str, str]]] = {}
        self._of: dict[ModelId, set[tuple[str, str]]] = {}

    def since(self, model: ModelId, engine: EngineId | None = None) -> float | None:
        """Since when it waits; None: it does not."""
        waiter = self._waiters.get((model, engine or ""))
        return waiter.since if waiter is not None else None

    def enter(self, waiter: Waiter) -> None:
        """Join, or change one's devices or due time in place."""
        if self._waiters.get(waiter.key) == waiter:
            return
        self.leave(waiter.model, waiter.engine)
        self._waiters[waiter.key] = waiter
        self._of.setdefault(waiter.model, set()).add(waiter.key)
        for device in waiter.devices:
            self._on.setdefault(device, set()).add(waiter.key)

    def leave(self, model: ModelId, engine: EngineId | None = None) -> None:
        waiter = self._waiters.pop((model, engine or ""), None)
        if waiter is None:
            return
        _drop(self._of, model, waiter.key)
        for device in waiter.devices:
            _drop(self._on, device, waiter.key)

    def of(self, model: ModelId) -> list[Waiter]:
        """The places of a model and of its engines."""
        return [self._waiters[key] for key in sorted(self._of.get(model, ()))]

    def reach(self, devices: Iterable[DeviceId]) -> set[DeviceId]:
        """`devices` and all that waiting groups tie to them: what must be decided together."""
        reached: set[DeviceId] = set()
        open_ = list(devices)
        while open_:
            device = open_.pop()
            if device in reached:
                continue
            reached.add(device)
            for key in self._on.get(device, ()):
                open_.extend(d for d in self._waiters[key].devices if d not in reached)
        return reached

    def groups(self, devices: Iterable[DeviceId]) -> list[list[DeviceId]]:
        """`devices` and those tied to them, each in its group, in order."""
        reached: set[DeviceId] = set()
        groups = []
        for device in sorted(devices):
            if device not in reached:
                group = self.reach((device,))
                reached |= group
                groups.append(sorted(group))
        return groups

    def in_order(self, devices: Iterable[DeviceId]) -> Iterator[Waiter]:
        """Those that wait for any of `devices`, first come first; only what is taken is sorted."""
        keys = {key for device in devices for key in self._on.get(device, ())}
        heap = [(waiter.due, waiter.tie, waiter.key) for waiter in (self._waiters[key] for key in keys)]
        heapq.heapify(heap)
        while heap:
            yield self._waiters[heapq.heappop(heap)[2]]


def _drop(index: dict[K, set[tuple[str, str]]], at: K, key: tuple[str, str]) -> None:
    index[at].discard(key)
    if not index[at]:
        del index[at]


def _without(said: dict[str, N], gateway: str) -> dict[str, N]:
    return {name: each for name, each in said.items() if name != gateway}


def _put(table: Table[N], event: DemandSeen, value: N | None) -> None:
    """What a gateway says of a model; None: nothing."""
    said = table.setdefault(event.model, {})
    if value is not None:
        said[event.gateway] = value
    else:
        said.pop(event.gateway, None)
    if not said:
        del table[event.model]
