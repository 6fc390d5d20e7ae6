"""An engine without a model: for tests of the coordinator. It registers, follows its tokens, enters and leaves at the
daemon, and answers OpenAI's routes behind a gate of its own, as a real one does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

from aiohttp import web

from coordinator.core.events import TokenSeen
from coordinator.core.model import Bytes, Fence, Holder, Load, Order, Phase, Residency, Spec, Token, Value
from coordinator.errors import LeaseLost, StoreError
from coordinator.store import keys
from coordinator.store.base import Listing, Put, Store
from coordinator.store.codec import encode
from coordinator.store.epoch import ensure_epoch
from coordinator.store.facts import Reader
from coordinator.store.follow import follow
from coordinator.store.session import Session, open_session
from tests.helpers.openai_stub import OpenAIStub, serving
from tests.helpers.stub_daemon import RETRY_S, Stale, StubDaemon


class StubEngine:
    """One engine of `size` bytes on the daemon's device. `operations` are what it did, in order; `deaf` makes it ignore
    tokens; `stub` answers requests."""

    def __init__(self, store: Store, daemon: StubDaemon, model: str, size: int, nonce: str = "1") -> None:
        self.model = model
        self.holder = Holder(model, nonce)
        self.phase = Phase.STARTING
        self.operations: list[Order] = []
        self.deaf = False
        self.stub = OpenAIStub(model)
        self._answer = self.stub.behave
        self._store = store
        self._daemon = daemon
        self._size = size
        self._open = asyncio.Event()
        self._running = 0
        self._waiting = 0
        self._load_moved = asyncio.Event()
        self._session: Session | None = None
        self._operation: asyncio.Future[None] | None = None
        self._fence = 0
        self._epoch = ""

    async def run(self) -> None:
        """Until cancelled. Then its lease is revoked; the daemon hears of its death by `StubDaemon.died`."""
        self._epoch = (await ensure_epoch(self._store)).id
        self.stub.behave = self._gate
        async with serving(self.stub):
            while True:
                try:
                    async with open_session(self._store) as session:
                        await self._live(session)
                except* StoreError:
                    await asyncio.sleep(RETRY_S)

    async def _live(self, session: Session) -> None:
        """Registered under one lease, until it is lost; what has begun is brought to its end (rule 5)."""
        if self._operation is not None:
            await self._operation
        self._session, self._fence = session, 0
        await self._register()
        self._load_moved.set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell_load())
            tasks.create_task(self._follow_tokens())
            await session.lost.wait()
            raise LeaseLost("register again")

    async def until_phase(self, phase: Phase) -> None:
        await self.stub.until(lambda: self.phase is phase)

    async def _register(self) -> None:
        spec = Spec(
            holder=self.holder,
            model=self.model,
            url=self.stub.url,
            devices=(self._daemon.device,),
            pid=1,
            boot_id="b",
            footprint=Bytes(weights=self._size),
            measured=True,
        )
        await self._put((keys.spec(self.model), spec), (keys.residency(self.model), self._residency(None)))

    async def _follow_tokens(self) -> None:
        reader = Reader()
        async with aclosing(follow(self._store, keys.token(self._daemon.device))) as updates:
            async for update in updates:
                seen = reader.listed(update) if isinstance(update, Listing) else reader.changed(update)
                for fact in seen.facts:
                    if isinstance(fact, TokenSeen) and not self.deaf:
                        await self._act(fact)

    async def _act(self, seen: TokenSeen) -> None:
        """Rule 5."""
        token = seen.token
        mine = token is not None and token.holder == self.holder and token.lease == self._lease
        if token is None or not mine or seen.revision <= self._fence:
            return
        self._fence = seen.revision
        self._operation = asyncio.ensure_future(self._operate(token, seen.revision))
        await asyncio.shield(self._operation)
        await self._put((keys.residency(self.model), self._residency(seen.revision)))

    async def _operate(self, token: Token, revision: int) -> None:
        """Never given up halfway."""
        self.operations.append(token.order)
        try:
            await self._daemon.enter(self.holder, revision)
        except Stale:
            return
        if token.order is Order.OFFLOAD:
            self._open.clear()
        size = self._size if token.order is Order.RESTORE else 0
        if size > token.bytes:
            raise AssertionError(f"{self.model} needs {size} bytes and was granted {token.bytes}")
        await self._daemon.hold(self.holder, size, revision)
        await self._daemon.leave(self.holder, revision)
        self.phase = Phase.RESIDENT if token.order is Order.RESTORE else Phase.OFFLOADED
        if self.phase is Phase.RESIDENT:
            self._open.set()
        self.stub.changed.set()

    async def _gate(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """Held until resident; who waits and who runs shows in the load key."""
        self._count(waiting=1)
        try:
            await self._open.wait()
        finally:
            self._count(waiting=-1)
        self._count(running=1)
        try:
            return await (self._answer or self.stub.answer)(request, body)
        finally:
            self._count(running=-1)

    def _count(self, *, waiting: int = 0, running: int = 0) -> None:
        self._waiting += waiting
        self._running += running
        self._load_moved.set()

    async def _tell_load(self) -> None:
        """On change; what changes while a put is under way goes with the next."""
        while True:
            await self._load_moved.wait()
            self._load_moved.clear()
            await self._put((keys.load(self.model), Load(running=self._running, waiting=self._waiting)))

    def _residency(self, revision: int | None) -> Residency:
        fence = Fence(self._epoch, revision) if revision is not None else None
        held = Bytes(weights=self._size if self.phase is Phase.RESIDENT else 0)
        return Residency(holder=self.holder, phase=self.phase, fence=fence, held=held)

    @property
    def _lease(self) -> int:
        assert self._session is not None
        return self._session.lease

    async def _put(self, *values: tuple[str, Value]) -> None:
        await self._store.txn([], [Put(key, encode(value), self._lease) for key, value in values])


class Node:
    """A daemon and engines, running."""

    def __init__(
        self, daemon: StubDaemon, engines: dict[str, StubEngine], tasks: dict[str, asyncio.Task[None]]
    ) -> None:
        self.daemon = daemon
        self.engines = engines
        self._tasks = tasks

    def __getitem__(self, model: str) -> StubEngine:
        return self.engines[model]

    async def kill(self, model: str) -> None:
        """The engine's process is gone; its daemon notices."""
        self._tasks[model].cancel()
        await asyncio.wait((self._tasks[model],))
        await self.daemon.died(self.engines[model].holder)


@asynccontextmanager
async def node(store: Store, sizes: dict[str, int], capacity: int) -> AsyncIterator[Node]:
    """A device of `capacity` bytes and one engine for each model in `sizes`."""
    daemon = StubDaemon(store, capacity=capacity)
    engines = {model: StubEngine(store, daemon, model, size) for model, size in sizes.items()}
    async with AsyncExitStack() as stack:
        keeper = await stack.enter_async_context(_running(daemon.run()))
        await _ready(daemon, keeper)
        tasks = {model: await stack.enter_async_context(_running(engine.run())) for model, engine in engines.items()}
        yield Node(daemon, engines, tasks)


async def _ready(daemon: StubDaemon, keeper: asyncio.Task[None]) -> None:
    ready = asyncio.ensure_future(daemon.ready.wait())
    await asyncio.wait((ready, keeper), return_when=asyncio.FIRST_COMPLETED)
    if keeper.done():
        keeper.result()


@asynccontextmanager
async def _running(work: Any) -> AsyncIterator[asyncio.Task[None]]:
    """A task that ends with the block; what it raised is raised there."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
