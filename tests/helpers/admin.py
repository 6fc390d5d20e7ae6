"""A running admin API over a store in memory; the coordinator behind it is a recorder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import ClientSession

from coordinator.admin.app import Admin, Settings
from coordinator.admin.feed import Feed
from coordinator.core.events import OrderAsked
from coordinator.core.model import ModelId, Policy
from coordinator.core.settings import Settings as ModelSettings
from coordinator.core.view import PolicyState, State
from coordinator.errors import ConfigError
from coordinator.history import History
from coordinator.reload import Report
from coordinator.store import keys
from coordinator.store.codec import decode
from coordinator.store.facts import Quarantined
from coordinator.store.memory import MemoryEtcd, MemoryStore


class Core:
    """What the API asks of a coordinator."""

    def __init__(self, identifier: str = "c1", *, leading: bool = True) -> None:
        self.id = identifier
        self.leading = leading
        self.models: Iterable[str] = ("a", "org/b")
        self.quarantined: Iterable[Quarantined] = ()
        self.orders: list[OrderAsked] = []
        self.history = History(lambda: 1.7e9)
        self.eviction = PolicyState("lru", {}, "landlord", False)
        self.state = State(leading=leading, epoch="e", revision=3)
        self.report: Report | ConfigError = Report(("defaults.pin",))

    def view(self) -> State:
        return self.state

    def configured(self, model: ModelId) -> tuple[ModelSettings, Policy | None]:
        return ModelSettings(), None

    def order(self, asked: OrderAsked) -> None:
        self.orders.append(asked)

    async def reload(self) -> Report:
        if isinstance(self.report, ConfigError):
            raise self.report
        return self.report


class Bench:
    """A running API and a client of it."""

    def __init__(self, core: Core, store: MemoryStore, feed: Feed, running: Admin, session: ClientSession) -> None:
        self.core = core
        self.store = store
        self.feed = feed
        self.running = running
        self.url = running.url
        self.session = session

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
        async with self.session.request(method, self.url + path, **options) as answer:
            return answer.status, await answer.json()

    async def policy(self, model: str) -> Policy | None:
        found = await self.store.get(keys.policy(model))
        return decode(Policy, found.value) if found is not None else None


@asynccontextmanager
async def admin(
    api_key: str = "", *, core: Core | None = None, store: MemoryStore | None = None, **settings: Any
) -> AsyncIterator[Bench]:
    store = store or MemoryEtcd().client(timeout=0.05)
    core, feed = core or Core(), Feed(backlog=4)
    async with (
        Admin(Settings(port=0, api_key=api_key, **settings), core, store, feed) as running,
        ClientSession() as session,
    ):
        yield Bench(core, store, feed, running, session)
