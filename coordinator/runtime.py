"""The process around the core: one inbox, one loop, and the sources that fill it.

*event -> inbox -> `Scheduler.handle` -> commands -> effects -> event.* Sources are the watch, the gateway's demand, the
operators' orders, leadership, and the clock. Decisions run beside the loop; what becomes of one is an event. While etcd
is away nothing is decided, routes stay as they are and requests keep flowing (PROTOCOL rule 14).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing

import msgspec

from coordinator.admin.app import Admin
from coordinator.admin.app import Settings as AdminSettings
from coordinator.admin.feed import Feed
from coordinator.config import Config
from coordinator.configured import names, reconfigured
from coordinator.core.commands import Command, Direct, Grant, Reclaim, Refuse, Route
from coordinator.core.events import (
    Changed,
    DemandSeen,
    EpochSeen,
    Event,
    Granted,
    Listed,
    OrderAsked,
    RefusalSeen,
    Tick,
)
from coordinator.core.model import Coordinator, ModelId, Policy
from coordinator.core.scheduler import Scheduler
from coordinator.core.settings import Settings as ModelSettings
from coordinator.core.view import PolicyState, State
from coordinator.effects import Effects
from coordinator.errors import ConfigError
from coordinator.gateway.app import Gateway
from coordinator.gateway.settings import Settings as GatewaySettings
from coordinator.history import History, Switch
from coordinator.hosts import advertised
from coordinator.membership import Member
from coordinator.metrics import Metrics
from coordinator.notices import Notices
from coordinator.observed import ObservedStore
from coordinator.reload import ConfigFile, Reloader, Report
from coordinator.sources import DemandPost, Reached
from coordinator.store import keys
from coordinator.store.base import Listing, Store
from coordinator.store.facts import Quarantined, Reader
from coordinator.store.follow import follow
from coordinator.store.session import TTL_S

log = logging.getLogger(__name__)

LEAST_TICK_S = 0.001
"""A deadline in the past is a tick soon, never a loop without a pause."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`id` names this coordinator and its gateway in etcd."""

    id: str
    gateway: GatewaySettings = GatewaySettings()
    admin: AdminSettings = AdminSettings()
    lease_ttl: int = TTL_S


class Runtime:
    """One coordinator; make it while a loop runs, then `run` it."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        scheduler: Scheduler,
        *,
        file: ConfigFile | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._scheduler = scheduler
        self._clock = clock
        self._inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._reader = Reader()
        self._reached = Reached()
        self._metrics = Metrics(scheduler.view, clock)
        self._store = store = ObservedStore(store, self._metrics.etcd_called, self._metrics.wrote, clock)
        self._effects = Effects(store)
        self._feed = Feed()
        self._demand = DemandPost(settings.id, self._heard_demand)
        self._notices = Notices(settings.id, self._notices_moved)
        self._decisions: set[asyncio.Task[None]] = set()
        self._member: Member | None = None
        self._admin = Admin(settings.admin, self, store, self._feed)
        self._watch = file is not None and file.watch
        self._reloader = Reloader(file, self._adopt) if file is not None else None
        self._gateway = Gateway(
            settings.gateway, self._metrics, self._demand.changed, self, self._demand.kept, clock=clock
        )
        self._names = settings.gateway.names
        self._left: set[str] = set()
        self._reads = 0
        self.ready = asyncio.Event()

    # ---- what gateway and admin API ask

    @property
    def id(self) -> str:
        return self._settings.id

    @property
    def leading(self) -> bool:
        return self._member is not None and self._member.leading

    @property
    def gateway_url(self) -> str:
        return self._gateway.url

    @property
    def admin_url(self) -> str:
        return self._admin.url

    @property
    def models(self) -> Iterable[str]:
        return {*self._names.models, *(model.id for model in self._scheduler.view().models)}

    @property
    def quarantined(self) -> Iterable[Quarantined]:
        """Values in etcd that do not decode and are not obeyed."""
        return self._reader.quarantined.values()

    def view(self) -> State:
        return self._scheduler.view()

    @property
    def history(self) -> History:
        return self._metrics.history

    @property
    def eviction(self) -> PolicyState:
        return self._scheduler.chosen

    def configured(self, model: ModelId) -> tuple[ModelSettings, Policy | None]:
        return self._scheduler.configured(model)

    async def reload(self) -> Report:
        """Reads the configuration file again. Raises ConfigError, and then all stays as it is."""
        if self._reloader is None:
            raise ConfigError("this coordinator was started without a configuration file", remedy="restart it with one")
        return await self._reloader.reload()

    def order(self, asked: OrderAsked) -> None:
        self._inbox.put_nowait(asked)

    def max_wait(self, model: str) -> float:
        return self._scheduler.settings(ModelId(model)).max_wait

    def objective(self, model: str) -> float | None:
        return self._scheduler.settings(ModelId(model)).ttft_objective

    def healthy(self) -> bool:
        return self._member is not None and self._member.healthy

    def phases(self) -> Mapping[str, str]:
        """The phase of each model's most awake engine."""
        view = self._scheduler.view()
        engines = {engine.id: engine for engine in view.engines}
        return {
            model.id: min((engines[each].phase or "stopped" for each in model.engines if each in engines), key=_sleep)
            for model in view.models
            if any(each in engines for each in model.engines)
        }

    # ---- life

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then: admit nothing, let answers end, resign, revoke the session. Raises OSError when an
        address cannot be listened on, `StoreError` when etcd refuses us."""
        async with AsyncExitStack() as listeners:
            await listeners.enter_async_context(self._admin)
            await listeners.enter_async_context(self._gateway)
            member = self._member = Member(
                self._store,
                Coordinator(
                    id=self.id,
                    admin_url=advertised(self.admin_url),
                    gateway_url=advertised(self.gateway_url),
                    pid=os.getpid(),
                ),
                self._inbox.put_nowait,
                self._reached.until,
                lambda: self._demand.standing(self._gateway.demand),
                lambda: self._notices.standing,
                ttl=self._settings.lease_ttl,
            )
            async with asyncio.TaskGroup() as tasks:
                sources: tuple[asyncio.Task[None], ...] = (
                    tasks.create_task(self._follow(member), name="watch"),
                    tasks.create_task(self._loop(tasks), name="loop"),
                )
                if self._watch and self._reloader is not None:
                    sources = (*sources, tasks.create_task(self._reloader.watch(), name="configuration"))
                membership = tasks.create_task(member.run(), name="membership")
                self.ready.set()
                await stop.wait()
                log.info("stopping: running answers may end")
                await self._gateway.drain()
                membership.cancel()
                await asyncio.wait((membership,))
                for task in (*sources, *self._decisions):
                    task.cancel()

    async def _follow(self, member: Member) -> None:
        """The one watch."""
        async with aclosing(follow(self._store, keys.ROOT, current=self._gateway.heed)) as updates:
            async for update in updates:
                event = self._reader.listed(update) if isinstance(update, Listing) else self._reader.changed(update)
                self._metrics.quarantined(len(self._reader.quarantined))
                self._metrics.watched(update.revision)
                self._inbox.put_nowait(event)
                self._reached.move(update.revision)
                if _without_epoch(event):
                    member.epoch_missing()

    async def _loop(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            event = await self._next()
            now = self._clock()
            self._publish(event, now)
            self._notices.saw(event)
            if isinstance(event, (Listed, Changed)):
                self._heed(event)
            for command in self._scheduler.handle(event, now):
                self._metrics.ordered(command, now)
                self._feed.publish("command", command)
                self._perform(command, tasks)
            await asyncio.sleep(0)

    def _publish(self, event: Event, now: float) -> None:
        """To metrics, history and whoever listens to the feed; the heartbeat's empty change is no news."""
        for noted in self._metrics.saw(event, now):
            self._feed.publish("switch" if isinstance(noted, Switch) else "sample", noted)
        if isinstance(event, Tick) or (isinstance(event, Changed) and not event.facts):
            self._feed.touch()
        else:
            self._feed.publish("event", event)

    def _adopt(self, config: Config, running: Config) -> None:
        """The live part of a configuration that was read again, and the models that its node goes on with. Raises
        ConfigError, and then nothing is adopted."""
        self._gateway.vet_keys(config.gateway.api_keys)
        self._admin.change_keys(config.admin.api_key, config.admin.roles)
        self._gateway.change_keys(config.gateway.api_keys)
        self._gateway.resize(config.gateway.max_queue)
        known = names(running)
        self._left = (self._left | set(self._names.models) | set(self._names.prefill.values())) - {
            *known.models,
            *known.prefill.values(),
        }
        self._names = names(running, self._left)
        self._gateway.rename(self._names)
        self._inbox.put_nowait(reconfigured(config, self._left))
        self._reads += 1
        if self._member is not None:
            self._member.read_again(self._reads)

    async def _next(self) -> Event:
        """The next event, or a `Tick` at the scheduler's deadline."""
        if not self._inbox.empty():
            return self._inbox.get_nowait()
        deadline = self._scheduler.deadline()
        if deadline is None:
            return await self._inbox.get()
        try:
            async with asyncio.timeout(max(deadline - self._clock(), LEAST_TICK_S)):
                return await self._inbox.get()
        except TimeoutError:
            return Tick()

    def _perform(self, command: Command, tasks: asyncio.TaskGroup) -> None:
        match command:
            case Route():
                self._gateway.route(command)
            case Refuse():
                self._gateway.refuse(command)
                self._notices.refused(command)
            case Grant() | Reclaim() | Direct():
                decision = tasks.create_task(self._decide(command), name=f"decision {command.id}")
                self._decisions.add(decision)
                decision.add_done_callback(self._decisions.discard)

    async def _decide(self, command: Grant | Reclaim | Direct) -> None:
        outcome = await self._effects.perform(command)
        self._metrics.decided(command, outcome, self._clock())
        if isinstance(outcome, Granted):
            self._feed.publish("decision", msgspec.structs.replace(command.decision, at=time.time()))
        self._inbox.put_nowait(outcome)

    def _heed(self, event: Listed | Changed) -> None:
        """What the leader has told: for our gateway, unless the leader is here."""
        told = {fact.model: fact.refusal for fact in event.facts if isinstance(fact, RefusalSeen)}
        if isinstance(event, Listed):
            told = {**dict.fromkeys(self._gateway.refused), **told}
        for model, refusal in told.items():
            if refusal is None or self.leading:
                self._gateway.admit(model)
            else:
                self._gateway.turn_away(Refuse(model, refusal.reason, refusal.retry_after_s))
        if isinstance(event, Listed):  # changes may have come before doubt did
            self._gateway.heed(True)

    def _notices_moved(self) -> None:
        if self._member is not None:
            self._member.notices_moved()

    def _heard_demand(self, event: DemandSeen) -> None:
        self._inbox.put_nowait(event)
        if self._member is not None:
            self._member.demand_moved()


def _without_epoch(event: Listed | Changed) -> bool:
    """Whether it says that there is no epoch."""
    epochs = [fact.epoch for fact in event.facts if isinstance(fact, EpochSeen)]
    return epochs[-1] is None if epochs else isinstance(event, Listed)


_AWAKE = ("resident", "restoring", "starting", "draining", "offloaded", "stopped", "lost", "failed")


def _sleep(phase: str) -> int:
    return _AWAKE.index(phase)
