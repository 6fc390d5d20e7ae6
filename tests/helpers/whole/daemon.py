"""A node's daemon: the real `native.daemon.node.Node` over simulated hardware, and the connections to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from native import protocol
from native.connections import Answer
from native.daemon.node import Node
from native.daemon.options import DeviceOption, Options
from native.journal import Ledger
from native.link import ANSWER_MARGIN, DaemonRefused, DaemonUnavailable
from native.processes import Process
from tests.helpers.whole.loop import NOBODY, Proc, spawn
from tests.helpers.whole.network import SimStore

if TYPE_CHECKING:
    from tests.helpers.whole.engine import SimEngine
    from tests.helpers.whole.world import World

TTL = 2
CHUNK = 2 << 20
PAUSE_S = 0.1
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Ledger).decode


class SimJournal:
    """What is written outlives the daemon. `failing`: the disk takes nothing."""

    path = Path("journal")

    def __init__(self, node: str) -> None:
        self.last = Ledger(node=node)
        self._bytes = _encode(self.last)
        self.failing = False

    def load(self) -> Ledger:
        return _decode(self._bytes)

    def write(self, ledger: Ledger) -> None:
        if self.failing:
            raise OSError("no space left on device")
        self._bytes = _encode(ledger)
        self.last = ledger


class SimServer:
    """`native.connections.Server` without a socket."""

    def __init__(self, path: Path, open_session: Callable[[Process], Any], *, peerpidfd: bool = True) -> None:
        self.path = path
        self.open_session = open_session

    async def run(self) -> None:
        await asyncio.get_running_loop().create_future()

    def close(self) -> None:
        pass


class SimDaemon:
    """All lives of one node's daemon. `life` counts them; 0 while it is away."""

    def __init__(self, world: World, name: str, chunks: dict[str, int]) -> None:
        self.world = world
        self.name = name
        self.journal = SimJournal(name)
        self._lives = 0
        self.life = 0
        self.proc = Proc(name)
        self.node: Node | None = None
        self.store: SimStore | None = None
        self._talks: dict[asyncio.Future[Any], asyncio.Task[Answer] | None] = {}
        self.denials = 0
        self.options = Options(
            node=name,
            etcd=(),
            socket=Path("socket"),
            state_dir=Path("state"),
            devices=tuple(DeviceOption(id_, "sim", count * CHUNK) for id_, count in chunks.items()),
            lease_ttl=TTL,
            sample=1e9,
        )

    def start(self) -> None:
        if self.life or self.world.over:
            return
        self._lives += 1
        self.life = self._lives
        self.proc = Proc(self.name)
        self.store = self.world.store(self.proc, self.kill)
        spawn(self.world.loop, self.proc, self._live(self.store), self._died)

    async def _live(self, store: SimStore) -> None:
        self.node = Node(self.options, self.journal, store)  # type: ignore[arg-type]
        await self.node.run()

    def _died(self, error: BaseException) -> None:
        self.world.violate(f"daemon {self.name} died of {error!r}")

    def kill(self) -> None:
        """SIGKILL."""
        if not self.life or self.world.over:
            return
        self.life, self.node, self.proc.dead = 0, None, True
        if self.store is not None:
            self.store.gone()
        for answer in list(self._talks):
            self._hang_up(answer)
        self._talks.clear()

    # ---- connections

    def connect(self, pid: int) -> Any:
        """A session for a process. Only while it is up and has begun."""
        assert self.node is not None
        server: Any = self.node._server
        return self.proc.context.copy().run(server.open_session, self.world.machine.process(pid))

    def send(self, session: Any, life: int, request: protocol.Request, answer: asyncio.Future[Any]) -> None:
        """`life`: the daemon's that the session is of; the connection broke with it."""
        if life != self.life:
            self._hang_up(answer)
            return
        self._talks[answer] = None
        self.world.loop.call_later(self.world.lag(), self._serve, session, request, answer, context=self.proc.context)

    def _serve(self, session: Any, request: protocol.Request, answer: asyncio.Future[Any]) -> None:
        if answer.done():
            self._talks.pop(answer, None)
            return
        if isinstance(request, protocol.Map) and self.denials:
            self.denials -= 1
            self._talks.pop(answer, None)
            answer.set_result(protocol.Refused(protocol.Code.NO_SPACE, "denied by the simulation"))
            return
        task = self.world.loop.create_task(session.handle(request), context=self.proc.context)
        self._talks[answer] = task
        task.add_done_callback(lambda task: self._reply(task, answer))

    def _reply(self, task: asyncio.Task[Answer], answer: asyncio.Future[Any]) -> None:
        self._talks.pop(answer, None)
        if answer.done() or task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self.world.violate(f"the daemon answered with {error!r}")
        elif self.world.cuts() or error is not None:
            self._hang_up(answer)
        else:
            self.world.loop.call_later(self.world.lag(), _put, answer, task.result().reply, context=NOBODY)

    def _hang_up(self, answer: asyncio.Future[Any]) -> None:
        self.world.loop.call_later(self.world.lag(), _put, answer, None, context=NOBODY)

    def peer_gone(self, answer: asyncio.Future[Any]) -> None:
        """The other end hung up: its request is cancelled."""
        task = self._talks.pop(answer, None)
        if task is not None and self.life:
            self.world.loop.call_later(self.world.lag(), task.cancel, context=self.proc.context)


def _put(answer: asyncio.Future[Any], value: protocol.Reply | None) -> None:
    """None: the connection broke."""
    if not answer.done():
        answer.set_result(value)


class SimClient:
    """`native.client.Client` of one process, in coroutines: one connection, made anew when it breaks."""

    def __init__(self, engine: SimEngine, role: str) -> None:
        self._engine = engine
        self._daemon = engine.daemon
        self._hello = protocol.Hello(engine=engine.id, nonce=engine.nonce, role=role)
        self._life = 0
        """The daemon's that has welcomed this process; 0: none."""
        self._session: tuple[Any, int] = (None, 0)
        self._turn = asyncio.Lock()

    def close(self) -> None:
        pass

    async def enter(self, device: str, epoch: str, revision: int, timeout_s: float) -> protocol.Opened:
        request = protocol.Enter(device=device, epoch=epoch, revision=revision, timeout_s=timeout_s)
        opened = await self.ask(request, timeout_s)
        self._engine.world.entered(self._engine, device, epoch, revision)
        return opened  # type: ignore[no-any-return]

    async def leave(
        self, device: str, epoch: str, revision: int, timeout_s: float, answer: protocol.Answer | None = None
    ) -> None:
        await self.ask(protocol.Leave(device=device, epoch=epoch, revision=revision, answer=answer), timeout_s)

    async def ask(self, request: protocol.Request, timeout_s: float) -> Any:
        """Raises DaemonRefused, DaemonUnavailable."""
        try:
            async with asyncio.timeout(timeout_s + ANSWER_MARGIN):
                while True:
                    reply = await self._try(request)
                    if isinstance(reply, protocol.Refused):
                        raise DaemonRefused(reply.code, reply.message)
                    if reply is not None:
                        return reply
                    await asyncio.sleep(PAUSE_S)
        except TimeoutError:
            raise DaemonUnavailable("no answer") from None

    async def _try(self, request: protocol.Request) -> Any:
        """None: the daemon is away, or the connection broke."""
        async with self._turn:
            if self._daemon.node is None:
                return None
            if self._life != self._daemon.life:
                life = self._daemon.life
                self._session = (self._daemon.connect(self._engine.pid), life)
                reply = await self._exchange(self._hello)
                if not isinstance(reply, protocol.Welcome):
                    return reply
                self._life = life
        return await self._exchange(request)

    async def _exchange(self, request: protocol.Request) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._daemon.send(*self._session, request, answer)
        self._engine.talks.add(answer)
        try:
            reply = await answer
        finally:
            self._engine.talks.discard(answer)
            if not answer.done() or answer.cancelled():
                self._daemon.peer_gone(answer)
        if reply is None:
            self._life = 0
        return reply
