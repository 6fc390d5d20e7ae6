"""The agent of one engine: its session, its view of etcd, its daemon connection, and the hands of its state machine.

Everything here runs on the agent's own event loop (`start.AgentThread` has the thread). What the engine must do next is
`lifecycle`'s decision alone: facts go in by one inbox, actions come out and are carried out as tasks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

import msgspec

from coordinator.core.model import Bytes, Device, Holder, Load, Spec
from coordinator.errors import ConfigError, StoreError
from coordinator.store import keys
from coordinator.store.base import Store
from coordinator.store.follow import follow
from coordinator.store.session import open_session
from engine_patch import actions, events, lifecycle, pulse, report, vitals
from engine_patch.desk import Answer, Find, Publish, Request, Settled, open_desk
from engine_patch.engine import Engine
from engine_patch.errands import Errands, StepFailed
from engine_patch.estimate import sharing_room
from engine_patch.plan import Plan, first_spec
from engine_patch.postbox import Postbox
from engine_patch.publisher import Publisher
from engine_patch.report import Report
from engine_patch.seeds import Seeds
from engine_patch.settings import Settings
from engine_patch.view import View
from native.client import Client

log = logging.getLogger("vllm.vnpu.agent")

DISCOVER_S = 60.0
"""Wait for the node's daemon, its devices and our own registration."""
LOAD_SPACING_S = 0.2
PHASE_DELAY_S = 0.2
"""A phase that lasts shorter is not published: two writes less in every switch."""
OVER = 1.1
"""Measured over estimated footprint that is still accepted."""
PAUSE_S = 0.2
LISTEN_S = 60.0


class Agent:
    """One engine's life on the protocol. `run` until cancelled; the rest is called on the same loop."""

    def __init__(
        self, settings: Settings, plan: Plan, holder: Holder, store: Store, ended: Callable[[str, Engine | None], None]
    ) -> None:
        """`ended(reason, engine)` is called once, when the engine has to end; `engine` is None before `attach`."""
        self._settings = settings
        self._plan = plan
        self._holder = holder
        self._store = store
        self._ended = ended
        self._view = View(settings.node, settings.devices)
        self._seen = asyncio.Event()
        self._inbox: asyncio.Queue[events.Event] = asyncio.Queue()
        self._life = lifecycle.Lifecycle(holder, settings.devices)
        self._publisher = Publisher(store, holder)
        self._vitals = vitals.Vitals()
        self._renew = asyncio.Event()
        self.postbox = Postbox()
        self._engine: Engine | None = None
        self._tasks: asyncio.TaskGroup
        self._errands: Errands
        self._load = Load()
        self._spec: Spec
        self._seeds = Seeds()
        self.desk = ""
        """Socket at which this engine's workers ask."""

    @property
    def estimate(self) -> Bytes:
        return self._spec.footprint

    @property
    def shared(self) -> int:
        """Of the estimated weights, bytes for layers that ranks share."""
        devices = self._devices()
        return sharing_room(self._plan.weights, len(devices), max(device.chunk for device in devices))

    @property
    def drivers(self) -> tuple[str, ...]:
        """Of each rank's device."""
        return tuple(device.driver for device in self._devices())

    async def run(self, registered: Callable[[str], None]) -> None:
        """Join, and obey tokens; `registered(socket)` is called once, with the daemon's socket, when the keys stand.

        Raises:
            ExceptionGroup: of one ConfigError where the engine cannot join.
        """
        async with asyncio.TaskGroup() as self._tasks, open_desk(self._answer) as self.desk:
            self._tasks.create_task(self._follow())
            socket = await self._discover()
            self._put_spec(first_spec(self._plan, self._settings, self._holder, self._devices()))
            client = Client(socket, self._holder.engine, self._holder.nonce, "agent")
            try:
                self._errands = Errands(client, self._inbox.put_nowait)
                self._tasks.create_task(self._hold_lease())
                self._tasks.create_task(self._publisher.run())
                self._tasks.create_task(self._obey())
                await self._registration()
                registered(socket)
                await asyncio.get_running_loop().create_future()
            finally:
                await asyncio.to_thread(client.close)

    # ---- what others tell it

    def attach(self, engine: Engine, url: str, address: tuple[str, int]) -> None:
        """The server is about to listen at `address` and is known to others as `url`: the start-up ends when its
        memory is sealed."""
        self._engine = engine
        self._tasks.create_task(self._finish_start(engine, url, address))

    def load(self, load: Load) -> None:
        """At once when someone begins to wait, unless the restore that they wait for is under way. Else at most five
        times a second, and before the engine leaves."""
        urgent = load.waiting and not self._load.waiting and not self._life.restoring
        self._load = msgspec.structs.replace(load, kv_use=self._load.kv_use, ttft=self._load.ttft)
        self._publisher.put(keys.load(self._holder.engine), self._load, 0.0 if urgent else LOAD_SPACING_S)

    def kv_use(self, share: float) -> None:
        """How full the KV cache is, 0..1."""
        self._load = msgspec.structs.replace(self._load, kv_use=share)
        self._publisher.put(keys.load(self._holder.engine), self._load, LOAD_SPACING_S)

    def answered(self, seconds: float) -> None:
        """How long the newest request took to the first byte of its answer."""
        self._load = msgspec.structs.replace(self._load, ttft=round(seconds, 4))
        self._publisher.put(keys.load(self._holder.engine), self._load, LOAD_SPACING_S)

    def fail(self, reason: str) -> None:
        self._inbox.put_nowait(events.Failed(reason))

    # ---- joining

    async def _discover(self) -> str:
        """The daemon's socket, once daemon and devices are in etcd."""
        try:
            async with asyncio.timeout(DISCOVER_S):
                while self._view.daemon is None or any(d not in self._view.devices for d in self._settings.devices):
                    self._seen.clear()
                    await self._seen.wait()
        except TimeoutError:
            raise ConfigError(
                f"etcd shows no node daemon with {', '.join(self._settings.devices)} after {DISCOVER_S:g} s",
                remedy="start it: vnpu daemon; or correct VNPU_NODE, VNPU_DEVICE, VNPU_ETCD_ENDPOINTS",
            ) from None
        return self._settings.socket or self._view.daemon.socket

    def _devices(self) -> list[Device]:
        return [self._view.devices[name] for name in self._settings.devices]

    async def _registration(self) -> None:
        try:
            async with asyncio.timeout(DISCOVER_S):
                await self._publisher.registered.wait()
        except TimeoutError:
            rival = self._publisher.rival
            what = f"engine id {self._holder.engine!r} is in use" + (f" by process {rival.pid}" if rival else "")
            raise ConfigError(
                what if rival else f"etcd at {', '.join(self._settings.endpoints)} takes no registration",
                remedy="give each engine its own VNPU_ENGINE_ID, and see that etcd is healthy",
            ) from None

    async def _follow(self) -> None:
        """Once registered, whatever etcd says ends nothing: residents serve (PROTOCOL rule 14)."""
        while True:
            try:
                await self._follow_once()
            except StoreError as error:
                if not self._publisher.registered.is_set():
                    raise
                log.warning("cannot follow etcd: %s", error)
            await asyncio.sleep(PAUSE_S)

    async def _follow_once(self) -> None:
        async with aclosing(follow(self._store, keys.ROOT)) as news:
            async for one in news:
                self._seeds.apply(one)
                self._publisher.saw(one)
                if self._view.apply(one):
                    self._seen.set()
                    self._inbox.put_nowait(events.EpochSeen(self._view.epoch))
                    self._inbox.put_nowait(events.TokensSeen(self._view.tokens))

    def _answer(self, request: Request) -> Answer:
        match request:
            case Find(fingerprint, family, checkpoint, kin):
                found = self._seeds.find(fingerprint=fingerprint, family=family, checkpoint=checkpoint, kin=kin)
                return Answer(found)
            case Publish(fingerprint, seed):
                self._publisher.put(keys.seed(self._holder.engine, fingerprint), seed)
            case Settled(report):
                self.postbox.put(report)
        return Answer()

    async def _hold_lease(self) -> None:
        while True:
            await self._vitals.well()
            self._renew.clear()
            try:
                async with open_session(
                    self._store, self._settings.lease_ttl, healthy=lambda: self._vitals.healthy
                ) as session:
                    self._inbox.put_nowait(events.LeaseGained(session.lease))
                    await _first(session.lost.wait(), self._renew.wait())
            except StoreError as error:
                log.warning("no lease: %s", error)
                await asyncio.sleep(PAUSE_S)
            self._inbox.put_nowait(events.LeaseLost())

    async def _finish_start(self, engine: Engine, url: str, address: tuple[str, int]) -> None:
        def sealed(reports: tuple[Report, ...]) -> None:
            need = report.need(reports)
            if need.total > OVER * self.estimate.total:
                raise StepFailed(f"it holds {need.total} bytes of a device, {self.estimate.total} were estimated")
            self._put_spec(
                msgspec.structs.replace(
                    self._spec,
                    url=url,
                    footprint=need,
                    measured=True,
                    digest=",".join(one.digest for one in reports),
                    cold_start=pulse.seconds_since_start(),
                )
            )

        await _until_listening(address)
        await self._errands.seal(engine, sealed)
        self._tasks.create_task(self._vitals.ping(engine, lambda: self._life.op is not None))
        dead = await vitals.first_death(engine.pids())
        if not engine.stopping():
            self.fail(f"process {dead} of the engine died")

    def _put_spec(self, spec: Spec) -> None:
        self._spec = spec
        self._publisher.put(keys.spec(self._holder.engine), spec)

    # ---- the state machine and its hands

    async def _obey(self) -> None:
        while True:
            event = await self._inbox.get()
            if isinstance(event, events.LeaseLost):
                self._publisher.move(None)
            for action in self._life.handle(event):
                log.debug("%s -> %s", event, action)
                self._perform(action)

    def _perform(self, action: actions.Action) -> None:
        match action:
            case actions.Register(residency=residency):
                self._publisher.put(keys.residency(self._holder.engine), residency)
                self._publisher.put(keys.load(self._holder.engine), self._load)
                self._publisher.move(self._life.lease)
            case actions.Renew():
                log.warning("the store began a new life: registering again")
                self._publisher.move(None)
                self._renew.set()
            case actions.Publish(residency=residency, soon=soon):
                if not soon:
                    log.info("%s %s", residency.phase, residency.error or residency.fence)
                key = keys.residency(self._holder.engine)
                self._publisher.put(key, residency, PHASE_DELAY_S if soon else 0.0)
            case actions.End(reason=reason):
                log.error("the engine ends: %s", reason)
                self._ended(reason, self._engine)
            case _:
                if isinstance(action, actions.Drain):  # or it would be woken at once for requests that were answered
                    self._publisher.hasten(keys.load(self._holder.engine))
                self._tasks.create_task(self._errand(action))

    def _errand(self, action: actions.Action) -> Coroutine[Any, Any, None]:
        match action:
            case actions.Enter(device=device, fence=fence):
                return self._errands.enter(device, fence)
            case actions.Leave(device=device, fence=fence, residency=residency):
                key = keys.residency(self._holder.engine)
                beside = None if residency is None else self._publisher.entrust(key, residency)
                return self._errands.leave(device, fence, beside)
        if self._engine is None:
            return self._premature(action)
        match action:
            case actions.Drain():
                return self._errands.drain(self._engine)
            case actions.Offload():
                return self._errands.offload(self._engine)
            case actions.Restore():
                return self._errands.restore(self._engine)
            case actions.Settle():
                return self._errands.settle(self._engine)
            case actions.Undo():
                return self._errands.undo(self._engine)
        return self._errands.resume(self._engine)

    async def _premature(self, action: actions.Action) -> None:
        self.fail(f"{type(action).__name__} was wanted before the engine was up")


async def _until_listening(address: tuple[str, int]) -> None:
    """A resident engine is sent requests at once; uvicorn listens a moment after its lifespan has begun."""
    async with asyncio.timeout(LISTEN_S):
        while True:
            try:
                _, writer = await asyncio.open_connection(*address)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
