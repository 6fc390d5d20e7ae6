"""The gateway, put together. It knows no etcd and no scheduler: routes come in, demand goes out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType

from coordinator.core.commands import Refuse, Route
from coordinator.core.model import ModelId
from coordinator.gateway import problem as problems
from coordinator.gateway.access import Access, Keys
from coordinator.gateway.dispatch import Dispatcher
from coordinator.gateway.forward import Forwarder
from coordinator.gateway.handlers import Handlers, Knowledge
from coordinator.gateway.keep import Keeps, OnKept
from coordinator.gateway.routes import Routes
from coordinator.gateway.settings import Names, Settings
from coordinator.gateway.waiting import OnChange, WaitingRoom
from coordinator.hosts import Peers
from coordinator.http1.server import Server
from coordinator.metrics import Metrics

log = logging.getLogger(__name__)


class Gateway:
    """One gateway; make it while a loop runs, use it by `async with`. `on_demand(model, waiting)` is told every
    change, `on_kept(model, seconds)` how long requests want a model kept (`gateway.keep`). Raises ConfigError for a
    listener that anybody could reach."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        on_demand: OnChange,
        known: Knowledge,
        on_kept: OnKept,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._access = Access(settings.host, settings.api_keys)
        self._metrics = metrics
        self._on_demand = on_demand
        names = settings.names
        self._routes = Routes(names.models, names.hidden, names.aliases)
        self._room = WaitingRoom(settings.max_queue, self._demand_changed)
        self._known = known
        peers = Peers(settings.trusted_hosts)
        self._forwarder = Forwarder(peers, clock, settings.answer_timeout_s, self._answered)
        self._dispatcher = Dispatcher(self._routes, self._room, self._forwarder, clock, metrics.request_waited)
        self._keeps = Keeps(on_kept)
        self._handlers = Handlers(
            settings, self._access, self._routes, self._dispatcher, self._keeps, metrics, known, clock
        )
        self._server = Server(self._handlers.answer, settings.host, settings.port, settings.drain_s)

    async def __aenter__(self) -> Gateway:
        """Listens. Raises OSError when the address cannot be listened on."""
        try:
            await self._server.start()
        except BaseException:
            await self._forwarder.close()
            raise
        log.info("gateway listens on %s", self.url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain()
        await self._forwarder.close()

    async def drain(self) -> None:
        """Take nothing new, answer what waits with a retryable error, let running answers end within `drain_s`."""
        self._handlers.closing = True
        self._room.refuse_all(problems.closing)
        await self._server.close()

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def demand(self) -> dict[str, int]:
        """Requests that wait here now, by model."""
        return self._room.demand

    def route(self, route: Route) -> None:
        if not route.endpoints:
            self._keeps.left(route.model)
        self._dispatcher.route(route)

    def refuse(self, refuse: Refuse) -> None:
        """Answer whoever waits for that model now."""
        self._dispatcher.refuse(refuse)

    def turn_away(self, refuse: Refuse) -> None:
        """Answer whoever waits for that model, or would have to, until `admit`, or until it has an endpoint."""
        self._dispatcher.turn_away(refuse)

    def resize(self, max_queue: int) -> None:
        """Each model's queue takes so many from now on."""
        self._room.resize(max_queue)

    def rename(self, names: Names) -> None:
        """Clients can name these models from now on, and no others that are not there."""
        self._routes.configure(names.models, names.hidden, names.aliases)
        self._handlers.pair(names.prefill)

    def vet_keys(self, keys: Keys) -> None:
        """Raises ConfigError where the listener would be open to anybody with them."""
        self._access.vet(keys)

    def change_keys(self, keys: Keys) -> None:
        """These keys and no others from now on. Raises as `vet_keys`."""
        self._access.change(keys)

    def heed(self, current: bool) -> None:
        """Whether what was told by `turn_away` is so now. Where it may not be, requests wait."""
        self._dispatcher.heed(current)

    def admit(self, model: str) -> None:
        self._dispatcher.admit(model)

    @property
    def refused(self) -> frozenset[ModelId]:
        """Models that nobody may wait for."""
        return self._dispatcher.refused

    def _answered(self, model: str, seconds: float) -> None:
        self._metrics.answered(model, seconds, self._known.objective(model))

    def _demand_changed(self, model: str, waiting: int) -> None:
        self._metrics.queue_depth(model, waiting)
        self._on_demand(model, waiting)
