"""A rank's side thread for KV transfers: serves what its engine offers, and pulls what it is ordered to.

The model's thread only hands over orders and collects results; neither waits. Control is asyncio, bytes move on
threads of their own (`Desk`, `Puller`, `Listener`). Before sleep everything under way ends, both ways; after waking up
it goes on, with what was ordered meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from transfer.errors import TransferError
from transfer.kv.desk import Desk
from transfer.kv.fabric import Fabric
from transfer.kv.messages import Terms
from transfer.kv.near import Near
from transfer.kv.orders import Offer, Order, Orders, let_go
from transfer.kv.sink import Finished
from transfer.kv.source import Released, Source
from transfer.kv.supply import Me, Supply, Ways, handles
from transfer.kv.tcp import SERVICE, KvServer
from transfer.kv.ticket import Door
from transfer.netloader.guard import Guard
from transfer.transports.listener import Listener
from transfer.transports.trust import Trust

log = logging.getLogger("vllm.vnpu.transfer")

CALL_S = 10.0
CLOSE_S = 90.0
CLIENTS = 256
"""Connections of decode ranks, who have three each for a KV group."""
IDLE_S = 300.0
"""A prefill engine that nothing was pulled from for so long is forgotten; its connections end."""


class Missing(NamedTuple):
    """A block that did not come. Its id may mean another block in another KV group."""

    group: int
    block: int


@dataclass
class Results:
    """What ended since it was last asked. `failed`: owners some of whose blocks did not come; `blocks` are those, of
    every KV group. What was received is the engine's again, well or not."""

    sent: set[str] = field(default_factory=set)
    received: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    blocks: set[Missing] = field(default_factory=set)


@dataclass
class _Pull:
    order: Order
    verdicts: dict[str, Finished] = field(default_factory=dict)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    aborted: bool = False
    supply: Supply | None = None


@dataclass
class _Known:
    supply: Supply
    used: float


class Station:
    """A context manager that ends its threads."""

    def __init__(
        self,
        me: Me,
        num_kv_heads: int,
        trust: Trust,
        host: str,
        port: int = 0,
        *,
        mla: bool = False,
        terms: Terms | None = None,
        cpus: Sequence[int] = (),
        fabric: bool = False,
    ) -> None:
        """Listen at `host:port`, which others reach. `cpus`: processors the threads run on; `fabric`: serve and read
        through Mooncake where the other side does too.

        Raises:
            TransferError: the port is taken, or Mooncake is not there.
        """
        self._me, self._trust, self._terms, self._cpus = me, trust, terms or Terms(), tuple(cpus)
        self._lock = threading.Condition()
        self._results = Results()
        self._away = False
        self._owners: dict[str, str] = {}
        self._left: dict[str, set[str]] = {}
        self.guard = Guard()
        epoch = secrets.token_hex(16)
        source = Source(epoch, me.tp, me.rank, num_kv_heads, mla=mla, terms=self._terms)
        self._desk = Desk(source, self._released)
        regions = {
            first + at: layer
            for first, group in zip(handles(me.groups), me.groups, strict=True)
            for at, layer in enumerate(group.layers)
        }
        self._ways = Ways(fabric=Fabric(host, regions) if fabric else None)
        self._server = KvServer(regions, self._desk.answer, self.guard)
        if self._ways.fabric is not None:
            self._server.reached = self._ways.fabric.reached
        self._listener = Listener(host, port, trust, SERVICE, self._server.serve, clients=CLIENTS, cpus=cpus)
        self.door = Door(host, self._listener.port, epoch, tuple(group.layout for group in me.groups))
        self._ready = threading.Event()
        self._pulls: dict[str, _Pull] = {}
        self._waiting: dict[str, _Pull] = {}
        self._known: dict[tuple[Door, ...], _Known] = {}
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._run, name="vnpu-kv", daemon=True)
        self._thread.start()
        if not self._ready.wait(CALL_S):
            raise TransferError("the side thread for KV transfers does not start", remedy="report this")

    def __enter__(self) -> Station:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def share(self, near: Near) -> None:
        """From now on memory is mapped between engines of one machine. Before the first order."""
        self._server.near, self._ways = near, self._ways._replace(near=near)

    # ---- from the model's thread

    def perform(self, orders: Orders) -> None:
        """Begin; returns at once."""
        for offer in orders.offers:
            self._offer(offer)
        if orders.freed:
            self._desk.freed(orders.freed)
        for order in orders.pulls:
            self._loop.call_soon_threadsafe(self._begin, order)
        for owner in orders.aborted:
            self._loop.call_soon_threadsafe(self._abort, owner)

    def collect(self, wait_s: float = 0.0) -> Results:
        """What has ended; said once. Who has nothing else to do may wait for the next end, `wait_s` at most."""
        with self._lock:
            if wait_s:
                self._lock.wait_for(lambda: self._results.sent or self._results.received, wait_s)
            results, self._results = self._results, Results()
        return results

    # ---- from whoever puts the engine to sleep

    def sleep(self, timeout_s: float) -> bool:
        """Blocks until nothing reads or writes the cache any more. What nobody reads yet is taken back; sends in
        flight are waited for, pulls are broken off. False: something does not let go."""
        with self._lock:
            self._away = True
        ended = asyncio.run_coroutine_threadsafe(self._quieten(timeout_s), self._loop)
        try:
            quiet = ended.result(timeout_s + CALL_S)
        except TimeoutError:
            quiet = False
        self._desk.drain(timeout_s)
        return self.guard.close() and quiet

    def wake(self) -> None:
        """The cache is there again. Idempotent, from any thread, and nothing to speak of where it never went."""
        with self._lock:
            if not self._away:
                return
            self._away = False
        self.guard.open()
        self._desk.resume()
        self._loop.call_soon_threadsafe(self._awake.set)

    def close(self) -> None:
        """Idempotent; blocks until its threads have ended."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(CLOSE_S)
        self._listener.stop()
        self._desk.close()

    # ---- sending

    def _offer(self, offer: Offer) -> None:
        with self._lock:
            self._left[offer.owner] = {part.request for part in offer.parts}
            self._owners.update((part.request, offer.owner) for part in offer.parts)
        for part in offer.parts:
            self._desk.offer(part.request, part.blocks)

    def _released(self, one: Released) -> None:
        with self._lock:
            owner = self._owners.pop(one.request)
            self._left[owner].discard(one.request)
            if not self._left[owner]:
                del self._left[owner]
                self._results.sent.add(owner)
                self._lock.notify_all()

    # ---- pulling: the side thread

    def _run(self) -> None:
        if self._cpus:
            os.sched_setaffinity(0, self._cpus)  # threads that are started here inherit it
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop, self._awake = asyncio.Event(), asyncio.Event()
        self._awake.set()
        async with asyncio.TaskGroup() as self._tasks:
            forgetting = self._tasks.create_task(self._forget_idle())
            self._ready.set()
            await self._stop.wait()
            forgetting.cancel()
            self._awake.set()
            await self._close_all()

    def _begin(self, order: Order) -> None:
        if self._stop.is_set():
            self._end(order, {})
            return
        pull = _Pull(order)
        if order.owner:
            self._pulls[order.owner] = pull
        self._tasks.create_task(self._pull(pull))

    async def _pull(self, pull: _Pull) -> None:
        try:
            async with asyncio.timeout(self._terms.limit_s):
                await self._awake.wait()
            if pull.aborted:
                self._begin(let_go(pull.order.ticket))
            elif not self._stop.is_set():
                await self._through(pull)
        except (TimeoutError, ValueError, TransferError) as error:
            log.warning("kv pull of %s: %s", pull.order.owner, error or "asleep for too long")
        finally:
            self._pulls.pop(pull.order.owner, None)
            self._end(pull.order, pull.verdicts)

    async def _through(self, pull: _Pull) -> None:
        ticket = pull.order.ticket
        known = self._known.get(ticket.doors)
        if known is None:
            known = self._known[ticket.doors] = _Known(
                Supply(ticket.doors, self._me, self._trust, self._terms, self._finished, self._ways), 0.0
            )
        known.used = self._loop.time()
        if any(part.request in self._waiting for part in ticket.parts):
            raise ValueError("its ticket is in use already")
        for part in ticket.parts:
            self._waiting[part.request] = pull
        try:
            known.supply.pull(pull.order)
        except ValueError:
            for part in ticket.parts:
                del self._waiting[part.request]
            raise
        pull.supply = known.supply
        await pull.ended.wait()  # bounded by the terms: a pull ends, whatever happens
        known.used = self._loop.time()

    def _finished(self, verdict: Finished) -> None:
        self._loop.call_soon_threadsafe(self._heard, verdict)

    def _heard(self, verdict: Finished) -> None:
        pull = self._waiting.pop(verdict.request)
        pull.verdicts[verdict.request] = verdict
        if len(pull.verdicts) == len(pull.order.ticket.parts):
            pull.ended.set()

    def _abort(self, owner: str) -> None:
        pull = self._pulls.get(owner)
        if pull is not None:
            pull.aborted = True
            if pull.supply is not None:
                pull.supply.abort(pull.order.ticket)

    def _end(self, order: Order, verdicts: dict[str, Finished]) -> None:
        """Exactly once for each order: the engine's blocks hang on it."""
        if not order.owner:
            return
        failed = [
            Missing(group, places.blocks[at])
            for group, (part, places) in enumerate(zip(order.ticket.parts, order.wanted, strict=True))
            for at in _failed(verdicts.get(part.request), len(places.places))
        ]
        count = sum(len(places.places) for places in order.wanted)
        log.info("kv pull of %s: %d of %d blocks came", order.owner, count - len(failed), count)
        with self._lock:
            self._results.received.add(order.owner)
            self._results.blocks.update(failed)
            if failed:
                self._results.failed.add(order.owner)
            self._lock.notify_all()

    # ---- quiet

    async def _quieten(self, timeout_s: float) -> bool:
        self._awake.clear()
        supplies = [known.supply for known in self._known.values()]
        quiet = await asyncio.gather(*(asyncio.to_thread(each.abort_all, timeout_s) for each in supplies))
        return all(quiet)

    async def _close_all(self) -> None:
        known, self._known = list(self._known.values()), {}
        await asyncio.gather(*(asyncio.to_thread(each.supply.close) for each in known))

    async def _forget_idle(self) -> None:
        while True:
            await asyncio.sleep(IDLE_S / 10)
            busy = {id(pull.supply) for pull in self._waiting.values()}
            for doors, known in list(self._known.items()):
                if known.used < self._loop.time() - IDLE_S and id(known.supply) not in busy:
                    del self._known[doors]
                    await asyncio.to_thread(known.supply.close)


def _failed(verdict: Finished | None, count: int) -> Sequence[int]:
    return range(count) if verdict is None else verdict.failed
