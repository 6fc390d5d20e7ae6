"""The daemon's one state and its one loop: whatever happens changes state, then `settle` draws the consequences.

    etcd's watch, engines' calls, deaths, time  ->  fences and pools  ->  settle: close, kill  ->  journal  ->  etcd

A change is heard of outside, as an answer or in etcd, only after the journal has it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from contextlib import aclosing
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import msgspec

from coordinator.core import model
from coordinator.errors import SchemaError, StoreError
from coordinator.store import keys
from coordinator.store.base import Store
from coordinator.store.codec import encode
from coordinator.store.epoch import ensure_epoch
from coordinator.store.follow import follow
from native.connections import Server
from native.daemon.answers import Answers
from native.daemon.bell import Bell
from native.daemon.clearing import Clearing
from native.daemon.counters import Counters
from native.daemon.device import Device
from native.daemon.engines import Engines, Member
from native.daemon.facts import facts
from native.daemon.keeper import Keeper
from native.daemon.latency import WakeUps
from native.daemon.masters import Masters
from native.daemon.measure import Measure
from native.daemon.notices import Notices
from native.daemon.options import Options
from native.daemon.publisher import Beside, Publisher
from native.daemon.session import EngineSession
from native.daemon.shares import Shares
from native.daemon.shown import news, shown_open, shown_owner
from native.daemon.view import Engine, NodeView
from native.daemon.views import View, Views
from native.fences import Holder
from native.journal import DeviceLedger, Journal, JournalError, Ledger
from native.pool import Owner
from native.processes import boot_id
from native.protocol import Kind

log = logging.getLogger(__name__)

RETRY_PAUSE = 1.0


class Node:
    """Make it inside a running loop, then `run` it once."""

    def __init__(self, options: Options, journal: Journal, store: Store, *, peerpidfd: bool = True) -> None:
        """Raises:
        JournalError, DeviceFailed, SocketError: with what to do about it.
        """
        self.name = options.node
        self.version = _version()
        self.hello_timeout = options.hello_timeout
        self.bell = Bell()
        self.view = NodeView(options.node, [device.id for device in options.devices])
        self.engines = Engines(self._on_death)
        self.masters = Masters(options.host_ram, lambda: self.view.digests, options.pages, self._resident)
        self.measure = Measure(self, options.sample)
        self.counters = Counters()
        self.views = Views()
        self.shares = Shares()
        self.answers = Answers()
        self._wake_ups = WakeUps()
        self.clearing = Clearing(self, options.view_grace)
        self.keeper = Keeper(journal, self._snapshot, self._written)
        self._store = store
        self._publisher = Publisher(store, options.lease_ttl)
        self._revoking: set[int] = set()
        """Leases of the dead that still show in the view."""
        self._to_revoke: asyncio.Queue[Engine] = asyncio.Queue()
        self._drawn: dict[str, model.Device | None] = {}
        self._shown: dict[str, model.Device | None] = {}
        self._said: tuple[Beside, ...] = ()
        self._known: object = None
        """`_worth_keeping`, as of the last mark."""
        self._remains: dict[int, Member] = {}
        """The dead whose pages others may still have mapped (views)."""
        ledger = _load(journal, options)
        self.generation = ledger.generation + 1
        self.notices = Notices(self.generation)
        self.devices = {
            option.id: Device(
                option, ledger.devices.get(option.id, DeviceLedger()), self.generation, self.settle, options.pages
            )
            for option in options.devices
        }
        self._recall(ledger)
        self._server = Server(options.socket, lambda process: EngineSession(self, process), peerpidfd=peerpidfd)

    def now(self) -> float:
        """Monotonic seconds."""
        return asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Serve until cancelled. Engines that hold pages keep them and go on."""
        try:
            async with asyncio.TaskGroup() as group:
                self.settle()
                group.create_task(self.keeper.run(), name="journal")
                await self.keeper.durable()  # the new generation is on disk before any chunk id of it is
                self._publisher.want({keys.daemon(self.name): encode(self._daemon())}, urgent=True)
                for device in self.devices.values():
                    group.create_task(device.populate(), name=f"populate {device.option.id}")
                    group.create_task(device.wiper.run(), name=f"wipe {device.option.id}")
                for work in (
                    self._server.run,
                    self._publisher.run,
                    self._follow,
                    self._revoke,
                    self._tick,
                    self.measure.run,
                    self.clearing.run,
                ):
                    group.create_task(work(), name=work.__qualname__)
        finally:
            self._server.close()
            self._wake_ups.close()
            self.engines.close()
            self.masters.close()
            for device in self.devices.values():
                device.close()

    def settle(self) -> None:
        """Something happened: close what is over, kill who must go, persist, publish, wake who waits."""
        self._conclude()
        self._known = self._worth_keeping()
        self.keeper.mark()
        self.bell.ring()

    def _worth_keeping(self) -> object:
        """What of the newest view is kept or shown."""
        return dict(self.view.engines), [device.fences.lasting for device in self.devices.values()]

    def _conclude(self) -> None:
        for device in self.devices.values():
            kill = device.fences.advance(partial(self._living, device), self.now())
            if kill is not None:
                self.engines.doom(kill.holder, kill.why)
            device.wiper.look()
        if True in [device.stirred() for device in self.devices.values()]:
            self._wake_ups.hasten()
        self._revoke_leases_of_the_dead()

    def facts(self) -> str:
        """What the daemon knows, as JSON, for people and tests."""
        return facts(self)

    def _living(self, device: Device, holder: Holder) -> bool:
        return self.engines.alive(holder) or device.pool.held_by(holder) > 0

    def _resident(self, process: int) -> bool:
        """Whether the process has pages with weights on some device, its own or another's."""
        if any(sharer.process == process for share in self.shares for sharer in share.sharers):
            return True
        owners = [(device.pool, owner) for device in self.devices.values() for owner in device.pool.owners]
        return any(pool.bytes_of(owner)[Kind.WEIGHTS] for pool, owner in owners if owner.process == process)

    def _on_death(self, member: Member) -> None:
        self.masters.forget(member.number)
        self.notices.forget(member.number)
        self.views.forget(member.number)
        self.shares.forget(member.number, {name: device.pool for name, device in self.devices.items()})
        self.take_pages(member)

    def viewed(self, member: Member) -> tuple[View, ...]:
        """Views of a process's pages: its own, and those that another gave of pages which it has inherited."""
        pools = [(name, device.pool.chunks_of(member.owner)) for name, device in self.devices.items()]
        found = {view for name, chunks in pools for view in self.views.touching(name, chunks)}
        return (*found.union(self.views.of(member.number)),)

    def take_pages(self, member: Member) -> None:
        """The process is dead: its pages are back, but for those that others may still have mapped."""
        views = self.viewed(member)
        keep = frozenset(chunk for view in views if view.holders for chunk in view.chunks)
        for view in views:
            self.views.revoke(view)
        for name, device in self.devices.items():
            if back := device.release(member.owner, keep):
                log.info("device %s: %d MiB of %s are back", name, back >> 20, member)
        if keep:
            self._remains[member.number] = member
            self.clearing.bury(member)
        else:
            self._remains.pop(member.number, None)
        self.settle()

    def _revoke_leases_of_the_dead(self) -> None:
        """Rule 9: what stood on the lease goes now, not a TTL later. Where etcd is away, the lease ends by itself."""
        self._revoking &= {engine.lease for engine in self.view.engines.values()}
        for engine in self.view.engines.values():
            if engine.lease and engine.holder in self.engines.doomed and engine.lease not in self._revoking:
                self._revoking.add(engine.lease)
                self._to_revoke.put_nowait(engine)

    async def _revoke(self) -> None:
        while True:
            engine = await self._to_revoke.get()
            try:
                await self._store.revoke_lease(engine.lease)
                log.info("lease %x of %s is revoked", engine.lease, engine.holder)
            except StoreError as error:
                log.warning("lease %x of %s is left to expire: %s", engine.lease, engine.holder, error)
                self._revoking.discard(engine.lease)

    async def _follow(self) -> None:
        """Keep the view; create the epoch where there is none."""
        while True:
            try:
                async with aclosing(follow(self._store, keys.ROOT)) as news:
                    async for item in news:
                        before = self.view.epoch
                        self._publisher.saw(item)
                        if self.view.take(item):
                            self._observe()
                        if self.view.epoch != before:
                            log.info("epoch %s at revision %d", self.view.epoch or "none", self.view.revision)
                        if not self.view.epoch:
                            await ensure_epoch(self._store)
            except (StoreError, SchemaError) as error:
                log.warning("the view of etcd broke, trying again: %s", error)
            await asyncio.sleep(RETRY_PAUSE)

    def _observe(self) -> None:
        for name, device in self.devices.items():
            before = device.fences.regressed
            device.fences.observe(self.view.of(name))
            if device.fences.regressed and not before:
                log.error(
                    "device %s: etcd went back to revision %d (a snapshot was restored): nothing is granted here until "
                    "the keys epoch, tokens and seats are deleted",
                    name,
                    self.view.revision,
                )
        self._conclude()
        known, self._known = self._known, self._worth_keeping()
        if self._known != known:  # a grant alone changes nothing of that, and who was granted comes to enter now
            self.keeper.mark()
        self.bell.ring()

    async def _tick(self) -> None:
        """Settle when the limit of an operation passes that outlived the store's epoch (rule 13)."""
        while True:
            deadlines = [d for device in self.devices.values() if (d := device.fences.deadline()) is not None]
            wait = min(deadlines) - self.now() if deadlines else None
            try:
                async with asyncio.timeout(None if wait is None else max(0.0, wait)):
                    await self.bell.wait()
            except TimeoutError:
                self.settle()
                await asyncio.sleep(RETRY_PAUSE)

    def _snapshot(self) -> Ledger:
        """The ledger as it is now; what it shows to etcd is drawn at the same moment."""
        identities = {member.number: member.identity for member in (*self.engines, *self._remains.values())}
        self._drawn = {
            name: self._draw(name, device) if device.fences.publishable else None
            for name, device in self.devices.items()
        }
        inside = {device.fences.record.open.holder for device in self.devices.values() if device.fences.record.open}
        self._said = self.answers.ready(inside, self.view.engines)
        return Ledger(
            node=self.name,
            generation=self.generation,
            processes=tuple(member.known for member in self.engines),
            devices={
                name: device.ledger(identities, self.views.kept(name), self.shares.kept(name))
                for name, device in self.devices.items()
            },
            host=self.masters.ledger(),
        )

    def _written(self, ledger: Ledger) -> None:
        """The snapshot is durable: now it may be shown."""
        drawn = self._drawn
        urgent = any(news(self._shown.get(name), state) for name, state in drawn.items())
        self._shown = drawn
        values = {
            keys.device(f"{self.name}/{name}"): None if state is None else encode(state)
            for name, state in drawn.items()
        }
        self._publisher.want(values, urgent=urgent, beside=self._said)

    def state(self, device: Device) -> model.Device:
        record = device.fences.record
        members = {member.number: member for member in self.engines}
        drift = min(self.measure.drift.get(device.option.id, 0), device.pool.capacity - device.pool.charged)
        return model.Device(
            driver=device.option.driver,
            capacity=device.pool.capacity - drift,
            drift=drift,
            chunk=device.pool.chunk,
            epoch=record.epoch or "none",
            closed=record.closed,
            open=None if record.open is None else shown_open(record.open),
            owners=tuple(shown_owner(device, owner, members.get(owner.process)) for owner in device.pool.owners),
            shared=tuple(
                model.Shared(share.digest, len(share.chunks) * device.pool.chunk)
                for share in self.shares.on(device.option.id)
                if device.has(share.chunks)
            ),
            host_ram=self.host_ram(),
            free_measured=device.measured_free(),
            cached=device.pool.cached,
        )

    def _draw(self, name: str, device: Device) -> model.Device:
        """What is to be shown: the counts of work go along when something else has changed, and cost no write of their
        own."""
        state, shown = self.state(device), self._shown.get(name)
        if shown is not None and state == msgspec.structs.replace(shown, work=()):
            return shown
        return msgspec.structs.replace(state, work=device.counters.work())

    def host_ram(self) -> model.HostRam:
        masters = self.masters
        return model.HostRam(masters.total, masters.bytes, masters.saved_kv, masters.unused)

    def _daemon(self) -> model.Daemon:
        return model.Daemon(socket=str(self._server.path), boot_id=boot_id(), pid=os.getpid(), version=self.version)

    def _recall(self, ledger: Ledger) -> None:
        """PROTOCOL rule 11: who lives still holds what it held; the pages of the others are free, but for those that
        somebody who lives may have mapped."""
        self.engines.restore(ledger.processes)
        alive = {member.number for member in self.engines}
        self.masters.recall(ledger.host, alive)
        for name, device in self.devices.items():
            kept = ledger.devices.get(name, DeviceLedger())
            for view in kept.views:
                self.views.recall(name, view, alive)
            self.shares.recall(name, kept.shares, alive)
            for held in kept.owners:
                owner = Owner(held.holder, held.process)
                covered = held.chunks & self.views.viewers(name).keys()
                if held.process in alive:
                    device.adopt(owner, held.extents)
                    log.info("device %s: %s still holds %d MiB", name, held.holder, held.bytes >> 20)
                elif covered or self.shares.of(owner):
                    device.adopt(owner, held.extents)
                    self.shares.forget(owner.process, {name: device.pool})
                    device.release(owner, covered)
                if covered and held.process not in alive:
                    self._remains[held.process] = Member(held.process, held.holder, "worker", 0, held.identity, None)
        for member in self._remains.values():
            self.clearing.bury(member)
        self.engines.skip(self._remains)
        self._call_in_views()

    def _call_in_views(self) -> None:
        """Views of an earlier life are revoked: their owners offer them again."""
        for view in self.views:
            for process in self.views.revoke(view):
                self.notices.let_go(process, view.id)


def _load(journal: Journal, options: Options) -> Ledger:
    # Where a ledger was deleted, engines may still name chunks of it: a fresh one must not number its own the same.
    ledger = journal.load() or Ledger(node=options.node, generation=secrets.randbits(32))
    if ledger.node != options.node:
        raise JournalError(f"{journal.path} is of node {ledger.node}, not {options.node}; give another --state-dir")
    configured = {device.id for device in options.devices}
    for name, device in ledger.devices.items():
        if device.owners and name not in configured:
            raise JournalError(
                f"engines held pages of device {name}, which is not configured any more: "
                "configure it again, or stop them and delete the ledger"
            )
    return ledger


def _version() -> str:
    try:
        return version("vnpu")
    except PackageNotFoundError:
        return "unknown"
