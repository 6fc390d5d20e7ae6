"""The daemon's own view of etcd: tokens and seats of its devices, the epoch, and who the engines say they are.

An engine's word about its fence is never enough (PROTOCOL rule 6): this view decides. What does not decode counts as
gone. Changes come a revision at a time, so a grant is never seen half.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from coordinator.core import model
from coordinator.errors import SchemaError
from coordinator.store import keys
from coordinator.store.base import Change, Changes, KeyValue, Listing
from coordinator.store.codec import V, decode
from native.fences import Holder, Seat, Token, View

log = logging.getLogger(__name__)

_ENGINES = keys.ROOT + "engines/"
_SPEC = "/spec"


class Engine(msgspec.Struct, frozen=True):
    """What an engine's spec key says: who it is, the lease it lives on, the digest of its weights by device."""

    holder: Holder
    lease: int
    digests: dict[str, str]


class NodeView:
    """Feed it what `coordinator.store.follow` yields. `listed` is false until the first listing."""

    def __init__(self, node: str, devices: Iterable[str]) -> None:
        self.listed = False
        self.revision = 0
        self.epoch = ""
        self.engines: dict[str, Engine] = {}
        self._tokens: dict[str, Token] = {}
        self._seats: dict[str, Seat] = {}
        self._token_keys = {keys.token(f"{node}/{device}"): device for device in devices}
        self._seat_keys = {keys.seat(f"{node}/{device}"): device for device in devices}

    def take(self, news: Listing | Changes) -> bool:
        """Returns whether anything that the daemon goes by changed."""
        self.revision = news.revision
        if isinstance(news, Changes):
            relevant = False
            for change in news.changes:
                relevant |= self._take(change)
            return relevant
        self.listed = True
        self.epoch = ""
        for known in (self.engines, self._tokens, self._seats):
            known.clear()
        for kv in news.kvs:
            self._take(Change(kv.key, kv, kv.mod_revision))
        return True

    def of(self, device: str) -> View:
        """What the fences of one device go by."""
        return View(self.epoch, self.revision, self._seats.get(device), self._tokens.get(device))

    def holder(self, engine: str) -> Holder | None:
        """Who the engine of this id is now."""
        spec = self.engines.get(engine)
        return spec.holder if spec is not None else None

    @property
    def digests(self) -> frozenset[str]:
        """Contents that engines have."""
        return frozenset(digest for engine in self.engines.values() for digest in engine.digests.values() if digest)

    def others(self, engine: str, device: str, digest: str) -> bool:
        """Whether an engine other than this one has that content on the device (`<node>/<device>`)."""
        return any(one != engine and known.digests.get(device) == digest for one, known in self.engines.items())

    def _take(self, change: Change) -> bool:
        key, kv = change.key, change.kv
        if key == keys.EPOCH:
            epoch = _decoded(model.Epoch, kv)
            self.epoch = epoch.id if epoch is not None else ""
        elif device := self._token_keys.get(key):
            token = _decoded(model.Token, kv)
            _set(self._tokens, device, None if token is None else Token(_holder(token.holder), change.revision))
        elif device := self._seat_keys.get(key):
            seat = _decoded(model.Seat, kv)
            _set(self._seats, device, None if seat is None else _seat(seat, change.revision))
        elif key.startswith(_ENGINES) and key.endswith(_SPEC):
            engine = keys.unescape(key[len(_ENGINES) : -len(_SPEC)])
            _set(self.engines, engine, _engine(engine, kv))
        else:
            return False
        return True


T = TypeVar("T")


def _set(known: dict[str, T], name: str, value: T | None) -> None:
    if value is None:
        known.pop(name, None)
    else:
        known[name] = value


def _decoded(kind: type[V], kv: KeyValue | None) -> V | None:
    if kv is None:
        return None
    try:
        return decode(kind, kv.value)
    except SchemaError as error:
        log.warning("%s counts as gone: %s", kv.key, error)
        return None


def _engine(engine: str, kv: KeyValue | None) -> Engine | None:
    spec = _decoded(model.Spec, kv)
    if kv is None or spec is None or spec.holder.engine != engine:
        return None
    return Engine(_holder(spec.holder), kv.lease, {device: spec.digest_on(device) for device in spec.devices})


def _holder(holder: model.Holder) -> Holder:
    return Holder(holder.engine, holder.nonce)


def _seat(seat: model.Seat, revision: int) -> Seat:
    return Seat(_holder(seat.holder), revision, seat.order.value, seat.bytes, seat.limit_s)
