"""An engine: the real agent with its state machine, around simulated workers, gate and requests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from coordinator.core.model import Bytes, Holder, Load
from coordinator.errors import VnpuError
from engine_patch.agent import Agent
from engine_patch.estimate import PACKING, Weights
from engine_patch.plan import Plan
from engine_patch.publisher import Publisher
from engine_patch.report import Report
from engine_patch.settings import Settings
from native import protocol
from native.link import DaemonError
from native.protocol import Kind as Pages
from tests.helpers.whole.daemon import CHUNK, TTL, SimClient
from tests.helpers.whole.loop import NOBODY, Proc, spawn
from tests.helpers.whole.machine import BOOT, Chunk

if TYPE_CHECKING:
    from tests.helpers.whole.world import Request, World

STEP_S = 0.1
"""One forward pass."""
CALL_S = 30.0


class Kind(msgspec.Struct, frozen=True):
    """What a model's engine needs, in chunks on each of its devices. `gated`: requests run while it is restored."""

    model: str
    name: str
    devices: tuple[str, ...]
    weights: int
    kv: int
    boot_s: float = 0.5
    copy_s: float = 0.2
    gated: bool = False

    @property
    def node(self) -> str:
        return self.devices[0].partition("/")[0]


class TurnedAway(Exception):
    """The gate did not take the request."""


class Lost(Exception):
    """The process died over it."""


class SimEngine:
    """One life of an engine; a restart is another one with another nonce."""

    def __init__(self, world: World, kind: Kind, number: int) -> None:
        self.world = world
        self.kind = kind
        self.id = kind.name
        self.nonce = f"n{number}"
        self.pid = 1000 + number
        self.url = f"http://{kind.name}-{number}:1"
        self.proc = Proc(f"{kind.name}/{self.nonce}")
        self.daemon = world.daemons[kind.node]
        self.talks: set[asyncio.Future[Any]] = set()
        self.store = world.store(self.proc, self.die)
        self.agent: Agent | None = None
        self.requests: dict[Request, asyncio.Future[None]] = {}
        self.waiting = 0
        self.running = 0
        self.stepping = 0
        self.working = False
        """Its memory changes now."""
        self.wedged = False
        """Its next operation never ends, though the process goes on: a driver's call that hangs."""
        self.chunks: dict[str, list[tuple[int, Chunk]]] = {}
        self.door = asyncio.Event()
        self.copied = asyncio.Event()
        self._still = asyncio.Event()
        self._tickets = 0
        world.machine.living[self.pid] = self.proc
        spawn(world.loop, self.proc, self._live(), self._died)

    @property
    def alive(self) -> bool:
        return not self.proc.dead

    @property
    def phase(self) -> str:
        return self.agent._life.phase.value if self.agent is not None else "starting"

    def die(self) -> None:
        self.world.crash(self)

    # ---- its life

    async def _live(self) -> None:
        settings = Settings(
            endpoints=("x",),
            node=self.kind.node,
            devices=self.kind.devices,
            engine=self.id,
            driver="sim",
            lease_ttl=TTL,
        )
        total = int(self.kind.weights * CHUNK * len(self.kind.devices) / PACKING)
        plan = Plan(
            model=self.kind.model, url=self.url, pid=self.pid, boot_id=BOOT,
            weights=Weights(total, 0), kv=self.kind.kv * CHUNK,
        )  # fmt: skip
        self._client = SimClient(self, "worker")
        self.agent = Agent(settings, plan, Holder(self.id, self.nonce), self.store, self._ended)
        self.agent._publisher = Publisher(self.store, Holder(self.id, self.nonce), asyncio.get_running_loop().time)
        registered = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.agent.run(lambda socket: registered.set()))
            await registered.wait()
            await self._boot()
            self.agent.attach(self, self.url, ("", 0))

    def _died(self, error: BaseException) -> None:
        if isinstance(error, (VnpuError, DaemonError)):
            self._ended(str(error), None)
        else:
            self.world.violate(f"{self.id} died of {error!r}")

    async def _boot(self) -> None:
        for device in self.kind.devices:
            await self._client.ask(protocol.AwaitOpen(device=device, timeout_s=300.0), 300.0)
        self._begin()
        await asyncio.sleep(self.kind.boot_s)
        await self._fill()
        self._end()
        self.copied.set()
        self.door.set()

    def _ended(self, reason: str, engine: object) -> None:
        self.world.say(f"{self.id} ends itself: {reason}")
        self.world.loop.call_later(0.2, self.die, context=NOBODY)

    # ---- memory

    def _begin(self) -> None:
        self.working = True
        self.world.works(self)

    def _end(self) -> None:
        self.working = False

    async def _fill(self) -> None:
        for device in self.kind.devices:
            for pages, count in ((Pages.WEIGHTS, self.kind.weights), (Pages.KV, self.kind.kv)):
                if count:
                    await self._map(device, pages, count)
        for _ in range(2):
            await asyncio.sleep(self.kind.copy_s / 2)
            for chunk in self._mine():
                chunk.content = self.id

    async def _map(self, device: str, kind: Pages, count: int) -> None:
        self._tickets += 1
        request = protocol.Map(
            device=device, kind=kind, count=count, ticket=self._tickets, timeout_s=5.0,
            overwritten=kind is Pages.WEIGHTS,
        )  # fmt: skip
        mapped = await self._client.ask(request, CALL_S)
        held = self.chunks.setdefault(device, [])
        for number, handle in zip(mapped.chunks, mapped.handles, strict=True):
            held.append((number, self.world.machine.map(handle, self.pid)))

    def _mine(self) -> list[Chunk]:
        return [chunk for held in self.chunks.values() for _, chunk in held]

    async def _empty(self) -> None:
        for device in self.kind.devices:
            held = self.chunks.get(device, [])
            numbers = tuple(number for number, _ in held)
            while held:
                await asyncio.sleep(0.01)
                self.world.machine.unmap(held.pop()[1], self.pid)
            if numbers:
                await self._client.ask(protocol.Unmap(device=device, chunks=numbers), CALL_S)

    def _report(self, **more: Any) -> tuple[Report, ...]:
        return (Report(rank=0, pid=self.pid, need=self._held, **more),)

    @property
    def _held(self) -> Bytes:
        return Bytes(weights=self.kind.weights * CHUNK, kv=self.kind.kv * CHUNK)

    # ---- `engine_patch.engine.Engine`

    async def drain(self) -> None:
        self.door.clear()
        while self.stepping:
            self._still.clear()
            await self._still.wait()

    async def resume(self) -> None:
        self.door.set()

    async def seal(self) -> tuple[Report, ...]:
        return self._report(held=self._held, digest=self.kind.model)

    async def _wedge(self) -> None:
        if self.wedged:
            self.world.say(f"{self.id} hangs in its operation")
            await self.world.loop.create_future()

    async def offload(self) -> tuple[Report, ...]:
        await self.drain()
        self._begin()
        await self._wedge()
        if self.stepping or self.door.is_set():
            self.world.violate(f"I3: {self.id} unmaps while requests run")
        try:
            await self._empty()
        except DaemonError as error:
            return self._report(error=str(error))
        finally:
            self._end()
        return self._report(d2h=0)

    async def restore(self) -> tuple[Report, ...]:
        self._begin()
        self.copied.clear()
        await self._wedge()
        try:
            if self.kind.gated:
                return self._report(held=self._held, pending=True, turn=1)
            await self._fill()
            self._end()
        except DaemonError as error:
            self._end()
            return self._report(denied=str(error))
        self.copied.set()
        return self._report(held=self._held, restored=self._held.total)

    async def settle(self) -> tuple[Report, ...]:
        try:
            await self._fill()
        except DaemonError as error:
            return self._report(error=str(error))
        finally:
            self._end()
        self.copied.set()
        return self._report(held=self._held, restored=self._held.total)

    async def undo(self) -> tuple[Report, ...]:
        self._begin()
        try:
            await self._empty()
        except DaemonError as error:
            return self._report(error=str(error))
        finally:
            self._end()
        return self._report()

    async def ping(self) -> None:
        await asyncio.sleep(0)

    def pids(self) -> tuple[int, ...]:
        return ()

    def stopping(self) -> bool:
        return False

    def end(self, reason: str) -> None:
        self.die()

    # ---- requests

    def admit(self, request: Request) -> asyncio.Future[None]:
        """The request comes in; the future brings its end, or `TurnedAway`, or `Lost`."""
        done: asyncio.Future[None] = self.world.loop.create_future()
        self.world.loop.call_later(self.world.lag(), self._take, request, done, context=self.proc.context)
        self.requests[request] = done
        return done

    def _take(self, request: Request, done: asyncio.Future[None]) -> None:
        if done.done() or self.agent is None or self.agent._engine is None:
            self._done(request, done, TurnedAway())
            return
        task = self.world.loop.create_task(self._serve(request, done), context=self.proc.context)
        done.add_done_callback(lambda _: task.cancel())

    async def _serve(self, request: Request, done: asyncio.Future[None]) -> None:
        self._tell(waiting=1)
        try:
            await self.door.wait()
        finally:
            self._tell(waiting=-1)
        self._tell(running=1)
        try:
            left = request.work
            while left > 0:
                await self.door.wait()
                await self.copied.wait()
                if not self.door.is_set():
                    continue
                left -= STEP_S
                await self._step()
        finally:
            self._tell(running=-1)
        self._done(request, done, None)

    async def _step(self) -> None:
        self.stepping += 1
        try:
            self._look()
            await asyncio.sleep(STEP_S)
            self._look()
        finally:
            self.stepping -= 1
            if not self.stepping:
                self._still.set()

    def _look(self) -> None:
        """Every page is there and holds what it held (I3)."""
        wanted = (self.kind.weights + self.kind.kv) * len(self.kind.devices)
        mine = self._mine()
        if len(mine) != wanted:
            self.world.violate(f"I3: {self.id} runs with {len(mine)} of {wanted} pages")
        elif any(chunk.content != self.id for chunk in mine):
            self.world.violate(f"I3: {self.id} finds another's bytes in its pages")

    def _done(self, request: Request, done: asyncio.Future[None], error: Exception | None) -> None:
        self.requests.pop(request, None)
        self.world.loop.call_later(self.world.lag(), _settle, done, error, context=NOBODY)

    def _tell(self, *, waiting: int = 0, running: int = 0) -> None:
        self.waiting += waiting
        self.running += running
        if self.agent is not None:
            self.agent.load(Load(running=self.running, waiting=self.waiting))

    def bury(self) -> None:
        """Its process is dead: connections break, clients hear of it."""
        self.store.gone()
        for answer in list(self.talks):
            self.daemon.peer_gone(answer)
        for request, done in list(self.requests.items()):
            self._done(request, done, Lost())


def _settle(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
