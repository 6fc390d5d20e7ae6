"""A coordinator: the real `Runtime` with membership, election, effects and scheduler; and a gateway that has the real
routes, waiting room and dispatcher, but no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from coordinator.core.commands import Endpoint, Refuse, Route
from coordinator.core.events import LeadershipGained
from coordinator.core.model import ModelId
from coordinator.core.policies.registry import POLICIES, make
from coordinator.core.scheduler import Scheduler
from coordinator.gateway.call import Call
from coordinator.gateway.dispatch import Dispatcher
from coordinator.gateway.forward import NotTaken
from coordinator.gateway.problem import Problem, engine_lost
from coordinator.gateway.routes import Routes
from coordinator.gateway.waiting import WaitingRoom
from coordinator.runtime import Runtime, Settings
from tests.helpers.whole.daemon import TTL
from tests.helpers.whole.engine import Lost, TurnedAway
from tests.helpers.whole.loop import Proc, spawn
from tests.helpers.whole.network import SimStore

if TYPE_CHECKING:
    from tests.helpers.whole.world import Request, World


class NoMetrics:
    """Counts nothing."""

    def __init__(self, *args: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., tuple[()]]:
        return _nothing


def _nothing(*args: object, **more: object) -> tuple[()]:
    return ()


class NoAdmin:
    url = "http://admin"

    def __init__(self, *args: object) -> None:
        pass

    async def __aenter__(self) -> NoAdmin:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class SimForwarder:
    """Instead of HTTP: the engine itself."""

    def __init__(self, world: World) -> None:
        self._world = world

    def forget(self, urls: Iterable[str]) -> None:
        pass

    async def attempt(self, call: Call, endpoint: Endpoint, request: Any) -> Any:
        engine = next((engine for engine in self._world.engines.values() if engine.url == endpoint.url), None)
        if engine is None or not engine.alive:
            raise NotTaken("nobody listens", 0.5)
        answer = engine.admit(request)
        try:
            await answer
        except TurnedAway:
            raise NotTaken("its gate is shut", 0.5) from None
        except Lost:
            raise engine_lost(call.model) from None
        finally:
            answer.cancel()


class SimGateway(NoAdmin):
    """`coordinator.gateway.app.Gateway` without a listener."""

    url = "http://gateway"

    def __init__(
        self,
        settings: object,
        metrics: object,
        on_demand: Callable[[str, int], None],
        known: object,
        on_kept: object,
        *,
        clock: Callable[[], float],
        world: World,
    ) -> None:
        self.room = WaitingRoom(64, on_demand)
        self.dispatcher = Dispatcher(Routes(world.models), self.room, SimForwarder(world), clock, lambda *_: None)  # type: ignore[arg-type]
        self._clock = clock

    async def serve(self, request: Request) -> str:
        """How it ended."""
        deadline = self._clock() + request.patience
        call = Call(
            model=request.model, path="/v1/completions", body=b"", headers={}, deadline=deadline, arrived=self._clock(),
            client_id=request.id, engine_id=request.id,
        )  # fmt: skip
        try:
            await self.dispatcher.serve(call, request)  # type: ignore[arg-type]
        except Problem as problem:
            return problem.code
        return "served"

    @property
    def demand(self) -> dict[str, int]:
        return self.room.demand

    def route(self, route: Route) -> None:
        self.dispatcher.route(route)

    def refuse(self, refuse: Refuse) -> None:
        self.dispatcher.refuse(refuse)

    def turn_away(self, refuse: Refuse) -> None:
        self.dispatcher.turn_away(refuse)

    def heed(self, current: bool) -> None:
        self.dispatcher.heed(current)

    def admit(self, model: str) -> None:
        self.dispatcher.admit(model)

    @property
    def refused(self) -> frozenset[ModelId]:
        return self.dispatcher.refused

    async def drain(self) -> None:
        pass


class SimCoordinator:
    """All lives of one coordinator."""

    def __init__(self, world: World, id_: str) -> None:
        self.world = world
        self.id = id_
        self.proc = Proc(id_)
        self.store: SimStore | None = None
        self.runtime: Runtime | None = None
        self.gateway: SimGateway | None = None
        self.handling: dict[Request, asyncio.Task[str]] = {}
        self.start()

    @property
    def alive(self) -> bool:
        return self.runtime is not None and not self.proc.dead

    @property
    def leading(self) -> bool:
        return self.runtime is not None and not self.proc.dead and self.runtime.leading

    def start(self) -> None:
        if self.world.over or (self.store is not None and not self.proc.dead):
            return
        self.proc = Proc(self.id)
        self.store = self.world.store(self.proc, self.kill)
        spawn(self.world.loop, self.proc, self._live(self.store), self._died)

    async def _live(self, store: SimStore) -> None:
        world = self.world
        scheduler = Scheduler(
            world.settings,
            world.models,  # type: ignore[arg-type]
            limits=world.limits,
            policy=make(POLICIES[world.seed % len(POLICIES)]),
            predict=world.seed % 4 == 1,
        )
        self.runtime = _Watched(Settings(id=self.id, lease_ttl=TTL), store, scheduler, clock=world.loop.time)
        self.runtime.world = world
        self.gateway = self.runtime._gateway  # type: ignore[assignment]
        await self.runtime.run(asyncio.Event())

    def _died(self, error: BaseException) -> None:
        self.world.violate(f"coordinator {self.id} died of {error!r}")

    def kill(self) -> None:
        """SIGKILL."""
        if self.proc.dead or self.world.over:
            return
        self.proc.dead = True
        self.runtime = self.gateway = None
        if self.store is not None:
            self.store.gone()
        for request in list(self.handling):
            self.world.ended(request, "connection lost")
        self.handling.clear()

    def request(self, request: Request) -> None:
        """A client's request; where nobody listens it ends at once."""
        if self.gateway is None or self.proc.dead:
            self.world.ended(request, "connection refused")
            return
        task = self.world.loop.create_task(self._handle(request), context=self.proc.context)
        task.add_done_callback(lambda task: self._handled(request, task))
        self.handling[request] = task

    async def _handle(self, request: Request) -> str:
        return "connection lost" if self.gateway is None else await self.gateway.serve(request)

    def _handled(self, request: Request, task: asyncio.Task[str]) -> None:
        if self.handling.pop(request, None) is None:
            return
        self.world.ended(request, "the client left" if task.cancelled() else task.result())

    def hang_up(self, request: Request) -> None:
        """The client leaves."""
        task = self.handling.get(request)
        if task is not None and not self.proc.dead:
            self.world.loop.call_soon(task.cancel, context=self.proc.context)


class _Watched(Runtime):
    """Counts what comes."""

    world: World

    async def _next(self) -> Any:
        event = await super()._next()
        self.world.events += 1
        if isinstance(event, LeadershipGained):
            self.world.say(f"{self.id} leads")
        return event
