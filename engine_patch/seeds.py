"""Whose weights can be streamed, as etcd shows it: the seed keys of all engines, and how busy their engines are."""

from __future__ import annotations

import logging
from typing import TypeVar

import msgspec

from coordinator.core.model import Load, Seed, Value
from coordinator.errors import SchemaError
from coordinator.store import keys
from coordinator.store.base import Change, Changes, KeyValue, Listing
from coordinator.store.codec import decode

log = logging.getLogger("vllm.vnpu.agent")

V = TypeVar("V", bound=Value)
_ENGINES = keys.ROOT + "engines/"


class Found(msgspec.Struct, frozen=True):
    """One seed. `load`: requests that run and wait at its engine."""

    engine: str
    fingerprint: str
    seed: Seed
    load: int = 0


class Seeds:
    """Fed with what `coordinator.store.follow` yields. Loads come often and are seldom asked for: they are decoded when
    they are."""

    def __init__(self) -> None:
        self._seeds: dict[tuple[str, str], Seed] = {}
        self._loads: dict[str, KeyValue] = {}

    def apply(self, news: Listing | Changes) -> None:
        if isinstance(news, Listing):
            self._seeds.clear()
            self._loads.clear()
            changes = [Change(kv.key, kv, kv.mod_revision) for kv in news.kvs]
        else:
            changes = list(news.changes)
        for change in changes:
            self._apply(change)

    def find(
        self, *, fingerprint: str = "", family: str = "", checkpoint: str = "", kin: str = ""
    ) -> tuple[Found, ...]:
        """Those of this fingerprint, of this family, of this checkpoint, or of this configuration, in a fixed order."""
        return tuple(
            Found(engine, name, seed, self._load(engine))
            for (engine, name), seed in sorted(self._seeds.items(), key=lambda item: item[0])
            if matches(name, seed, fingerprint, family, checkpoint, kin)
        )

    def _apply(self, change: Change) -> None:
        if not change.key.startswith(_ENGINES):
            return
        match change.key[len(_ENGINES) :].split("/"):
            case [segment, "seed", fingerprint]:
                engine = keys.unescape(segment)
                self._seeds.pop((engine, fingerprint), None)
                seed = _value(Seed, change)
                if seed is not None:
                    self._seeds[engine, fingerprint] = seed
            case [segment, "load"]:
                engine = keys.unescape(segment)
                self._loads.pop(engine, None)
                if change.kv is not None:
                    self._loads[engine] = change.kv

    def _load(self, engine: str) -> int:
        kv = self._loads.get(engine)
        load = _value(Load, Change(kv.key, kv, kv.mod_revision)) if kv else None
        return load.running + load.waiting if load else 0


def matches(name: str, seed: Seed, fingerprint: str, family: str, checkpoint: str, kin: str) -> bool:
    """By the first that is given."""
    wanted = ((fingerprint, name), (family, seed.family), (checkpoint, seed.checkpoint), (kin, seed.kin))
    return next((is_ == asked for asked, is_ in wanted if asked), False)


def _value(kind: type[V], change: Change) -> V | None:
    try:
        return decode(kind, change.kv.value) if change.kv else None
    except SchemaError as error:
        log.warning("%s is not believed: %s", change.key, error)
        return None
