"""One node for tests: etcd, daemon, a leader that the test commands, and what engines say about themselves in etcd."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Protocol, TypeVar

from coordinator.core.model import Load, Order, Residency, Spec, Value
from coordinator.store import keys
from coordinator.store.base import Changes, KeyValue, Listing
from coordinator.store.codec import decode
from coordinator.store.etcd import EtcdStore
from coordinator.store.follow import follow
from tests.helpers.daemon import DaemonProcess
from tests.helpers.etcd import RealEtcd
from tests.helpers.leader import Granted, Leader, Registered

PATIENCE_S = 60.0
V = TypeVar("V", bound=Value)


class Engine(Protocol):
    """An engine process under test."""

    @property
    def engine(self) -> str: ...

    @property
    def log(self) -> Path: ...


class Lab:
    """See the module. `patience`: seconds until a test gives up."""

    def __init__(
        self, folder: Path, etcd: RealEtcd, daemon: DaemonProcess, store: EtcdStore, *, patience: float = PATIENCE_S
    ) -> None:
        self.folder = folder
        self.etcd = etcd
        self.daemon = daemon
        self.store = store
        self.leader = Leader(store)
        self.device = daemon.ids[0]
        self.patience = patience

    async def spec(self, engine: Engine, holds: Callable[[Spec], bool] = lambda spec: True) -> Spec:
        return await self._until(keys.spec(engine.engine), Spec, holds, engine)

    async def residency(self, engine: Engine, holds: Callable[[Residency], bool]) -> Residency:
        return await self._until(keys.residency(engine.engine), Residency, holds, engine)

    async def load(self, engine: Engine, holds: Callable[[Load], bool]) -> Load:
        return await self._until(keys.load(engine.engine), Load, holds, engine)

    async def _until(self, key: str, kind: type[V], holds: Callable[[V], bool], engine: Engine) -> V:
        return decode(kind, (await self._key(key, lambda kv: holds(decode(kind, kv.value)), engine)).value)

    async def _key(self, key: str, holds: Callable[[KeyValue], bool], engine: Engine) -> KeyValue:
        """Until the key stands and `holds`; each value that it had meanwhile is looked at, also one that is gone."""
        kv = None
        try:
            async with asyncio.timeout(self.patience), aclosing(follow(self.store, key)) as news:
                async for one in news:
                    for kv in _values(one, key):
                        if holds(kv):
                            return kv
        except TimeoutError:
            raise AssertionError(f"in vain; {key} is {kv}\n{engine.log.read_text()[-4000:]}") from None
        raise AssertionError("the watch ended")

    async def gone(self, engine: Engine) -> None:
        """Until the engine's spec is out of etcd."""
        key = keys.spec(engine.engine)
        async with asyncio.timeout(self.patience), aclosing(follow(self.store, key)) as news:
            async for _ in news:
                if await self.store.get(key) is None:
                    return

    async def registered(self, engine: Engine, holds: Callable[[KeyValue], bool] = lambda kv: True) -> Registered:
        kv = await self._key(keys.spec(engine.engine), holds, engine)
        spec = decode(Spec, kv.value)
        return Registered(spec.holder, spec.devices, kv.lease, kv.mod_revision)

    async def grant(self, engine: Engine, order: Order, size: int | None = None) -> Granted:
        """A real leader decides anew where a compare fails: the spec changes once after the start."""
        while True:
            registered = await self.registered(engine)
            await self.leader.closed(self.device)
            spec = await self.spec(engine)
            granted = await self.leader.try_grant(registered, order, spec.footprint.total if size is None else size)
            if granted is not None:
                return granted

    async def order(self, engine: Engine, order: Order) -> Residency:
        """Granted and obeyed."""
        granted = await self.grant(engine, order)
        return await self.residency(engine, at(granted))


def _values(update: Listing | Changes, key: str) -> list[KeyValue]:
    """What an update says of the key."""
    kvs = update.kvs if isinstance(update, Listing) else [change.kv for change in update.changes]
    return [kv for kv in kvs if kv is not None and kv.key == key]


def at(granted: Granted) -> Callable[[Residency], bool]:
    return lambda residency: residency.fence is not None and residency.fence.revision == granted.revision
