"""What stands in etcd, decoded: the picture that `vnpu up`, `vnpu-watch` and other onlookers draw from.

`Picture` is plain state, changed by what a watch delivers; `Mirror` keeps one picture current. A value that
does not decode is set aside in `quarantined` and never shown as truth.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import TypeVar, cast

from coordinator.core.model import (
    Coordinator,
    Daemon,
    Decision,
    Demand,
    Device,
    Epoch,
    Heartbeat,
    Load,
    Policy,
    Refusal,
    Residency,
    Seat,
    Seed,
    Spec,
    Token,
    Value,
)
from coordinator.core.process import Process, ProcessOrder
from coordinator.errors import SchemaError
from coordinator.store.base import Changes, KeyValue, Listing, Store
from coordinator.store.codec import decode
from coordinator.store.follow import follow
from coordinator.store.keys import ROOT, unescape

T = TypeVar("T", bound=Value)

_KEYS: Mapping[tuple[str, ...], type[Value]] = {
    ("nodes", "*", "daemon"): Daemon,
    ("nodes", "*", "devices", "*"): Device,
    ("nodes", "*", "engines", "*"): Process,
    ("processes", "*"): ProcessOrder,
    ("engines", "*", "spec"): Spec,
    ("engines", "*", "residency"): Residency,
    ("engines", "*", "load"): Load,
    ("engines", "*", "seed", "*"): Seed,
    ("tokens", "*", "*"): Token,
    ("seats", "*", "*"): Seat,
    ("demand", "*", "*"): Demand,
    ("refusals", "*"): Refusal,
    ("policy", "*"): Policy,
    ("decisions", "*"): Decision,
    ("coordinators", "*"): Coordinator,
    ("heartbeat",): Heartbeat,
    ("epoch",): Epoch,
}


def identify(key: str) -> tuple[type[Value], str] | None:
    """What stands under `key`, and whose it is: `(Device, "local/0")`, `(Spec, "qwen-a")`. None: nothing of ours."""
    parts = tuple(key.removeprefix(ROOT).split("/"))
    for pattern, type_ in _KEYS.items():
        if len(pattern) == len(parts) and all(want in ("*", part) for want, part in zip(pattern, parts, strict=True)):
            named = (unescape(part) for want, part in zip(pattern, parts, strict=True) if want == "*")
            return type_, "/".join(named)
    return None


class Picture:
    """Every value by its type and its owner's id; `revision` is the store's as of the last change."""

    def __init__(self) -> None:
        self.revision = 0
        self.edition = 0
        """Grows with every change but a heartbeat, which tells nothing that is shown."""
        self.quarantined: dict[str, str] = {}
        self._tables: dict[type[Value], dict[str, Value]] = {type_: {} for type_ in _KEYS.values()}
        self._written: dict[tuple[type[Value], str], int] = {}

    def of(self, type_: type[T]) -> Mapping[str, T]:
        """All values of one type by id: engine, `<node>/<device>`, `<gateway>/<model>`, …"""
        return cast("Mapping[str, T]", self._tables[type_])

    def written(self, type_: type[Value], owner: str) -> int:
        """The mod_revision of that value; 0: there is none."""
        return self._written.get((type_, owner), 0)

    def list(self, listing: Listing) -> None:
        """Replaces everything."""
        self.edition += 1
        for table in self._tables.values():
            table.clear()
        self._written.clear()
        self.quarantined.clear()
        for kv in listing.kvs:
            self._set(kv.key, kv)
        self.revision = listing.revision

    def change(self, changes: Changes) -> None:
        for change in changes.changes:
            self._set(change.key, change.kv)
        self.revision = changes.revision

    def _set(self, key: str, kv: KeyValue | None) -> None:
        self.quarantined.pop(key, None)
        known = identify(key)
        if known is None:
            return
        type_, owner = known
        self.edition += type_ is not Heartbeat
        self._tables[type_].pop(owner, None)
        self._written.pop(known, None)
        if kv is None:
            return
        try:
            self._tables[type_][owner] = decode(type_, kv.value)
            self._written[known] = kv.mod_revision
        except SchemaError as error:
            self.quarantined[key] = str(error)


class Mirror:
    """Keeps `picture` current from one watch. `heard` is when etcd last told anything (monotonic; None: never yet): a
    leader's heartbeat makes that once a second, so silence means that etcd is away or that nobody leads."""

    def __init__(self, store: Store) -> None:
        self.picture = Picture()
        self.heard: float | None = None
        self._store = store
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled; goes on while etcd is away. Raises StoreError where etcd refuses."""
        async with aclosing(follow(self._store, ROOT)) as updates:
            async for update in updates:
                if isinstance(update, Listing):
                    self.picture.list(update)
                else:
                    self.picture.change(update)
                self.heard = time.monotonic()
                waiting, self._changed = self._changed, asyncio.Event()
                waiting.set()

    async def until(self, wanted: Callable[[Picture], bool]) -> None:
        """Returns as soon as etcd was listed and the picture is as `wanted`."""
        while self.heard is None or not wanted(self.picture):
            await self.changed()

    async def changed(self) -> None:
        """Returns at the next change of the picture."""
        await self._changed.wait()
