"""From a request to an engine that takes it: wait while there is none, go to the least loaded, go on to another only
while nothing can be done twice."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from coordinator.core.commands import Endpoint, Refuse, Route
from coordinator.core.model import ModelId
from coordinator.gateway.call import Call
from coordinator.gateway.forward import Forwarder, NotTaken
from coordinator.gateway.problem import unavailable, waited_too_long
from coordinator.gateway.reply import Reply
from coordinator.gateway.routes import Balancer, Routes
from coordinator.gateway.waiting import WaitingRoom

log = logging.getLogger(__name__)

T = TypeVar("T")
Observe = Callable[[str, float], None]
"""(model, seconds): how long a request waited here before it was handed to an engine for the first time."""


class Dispatcher:
    """Routes, the waiting room and the engines, put together."""

    def __init__(
        self, routes: Routes, room: WaitingRoom, forwarder: Forwarder, clock: Callable[[], float], waited: Observe
    ) -> None:
        self._routes = routes
        self._room = room
        self._forwarder = forwarder
        self._clock = clock
        self._waited = waited
        self._balancer = Balancer()
        self._refused: dict[ModelId, Refuse] = {}
        self._current = True

    def route(self, route: Route) -> None:
        """A model's endpoints changed: whoever waits for it looks again."""
        self._routes.apply(route, self._clock())
        if route.endpoints:  # it comes: what was said against it is over
            self.admit(route.model)
        endpoints = self._routes.all_endpoints
        self._balancer.keep(endpoints)
        self._forwarder.forget({endpoint.url for endpoint in endpoints})
        self._room.call(route.model)

    def refuse(self, refuse: Refuse) -> None:
        """Whoever waits for a model is answered: it cannot be served for now."""
        self._room.refuse(refuse.model, lambda: unavailable(refuse.reason, refuse.retry_after_s))

    def turn_away(self, refuse: Refuse) -> None:
        """The same for whoever would have to wait, until `admit`, or until the model has an endpoint."""
        self._refused[refuse.model] = refuse
        self.refuse(refuse)

    def heed(self, current: bool) -> None:
        """Whether what was told of those to be turned away is so now. Where it may not be, they wait."""
        if current and not self._current:
            for refuse in self._refused.values():
                self.refuse(refuse)
        self._current = current

    def admit(self, model: str) -> None:
        self._refused.pop(ModelId(model), None)

    @property
    def refused(self) -> frozenset[ModelId]:
        return frozenset(self._refused)

    def is_there(self, model: str) -> bool:
        """An engine of it is there or may be woken: not all are gone, and nobody is turned away."""
        return self._routes.is_served(model) and ModelId(model) not in self._refused

    def waiting(self, model: str) -> int:
        """Requests that wait here for it."""
        return self._room.waiting(model)

    @contextmanager
    def wanting(self, model: str) -> Iterator[None]:
        """Within it `model` is demanded where it has no endpoint, for a request that will need it soon. Raises Problem
        (503) when its queue is full."""
        if self._routes.endpoints(model):
            yield
        else:
            with self._room.place(model):
                yield

    async def serve(self, call: Call, reply: Reply) -> None:
        """The engine's answer, passed on. Raises Problem when there is none."""
        await self._through(call, lambda to: self._forwarder.attempt(call, to, reply))

    async def ask(self, call: Call, limit: int) -> bytes:
        """The engine's answer, whole, for ourselves. Raises Problem when there is none, or it is over `limit` bytes."""
        return await self._through(call, lambda to: self._forwarder.fetch(call, to, limit))

    async def _through(self, call: Call, attempt: Callable[[Endpoint], Awaitable[T]]) -> T:
        begun = self._clock()
        endpoint = self._choose(call) or await self._wait_for_one(call, "")
        self._waited(call.model, self._clock() - begun)
        while True:
            try:
                with self._balancer.using(endpoint):
                    return await attempt(endpoint)
            except NotTaken as refusal:
                log.info("request %s waits again: %s", call.engine_id, refusal)
                self._balancer.avoid(endpoint, self._clock() + refusal.retry_s)
                endpoint = self._another(call) or await self._wait_for_one(call, str(refusal))

    def _another(self, call: Call) -> Endpoint | None:
        """None after the deadline too: engines that take turns in not taking it must not keep it for ever."""
        return self._choose(call) if self._clock() < call.deadline else None

    def _choose(self, call: Call) -> Endpoint | None:
        return self._balancer.choose(self._routes.endpoints(call.model), self._clock())

    async def _wait_for_one(self, call: Call, reason: str) -> Endpoint:
        """The first endpoint that may be tried; raises Problem at the call's deadline, or when waiting is in vain."""
        if self._current and (refused := self._refused.get(ModelId(call.model))) is not None:
            raise unavailable(refused.reason, refused.retry_after_s)
        with self._room.place(call.model) as place:
            while True:
                now = self._clock()
                if now >= call.deadline:
                    raise waited_too_long(call.model, reason)
                again = self._balancer.retry_at(self._routes.endpoints(call.model))
                await place.wait(min(call.deadline, again) - now)
                if (endpoint := self._choose(call)) is not None:
                    return endpoint
