"""The gateway's routes: what engines answer (`surface`), OpenAI's models, and `/health`, `/running`, `/metrics`.

Model ids may hold slashes, raw or escaped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import msgspec
from aiohttp import web

from coordinator.gateway import problem as problems
from coordinator.gateway import surface
from coordinator.gateway.access import Access
from coordinator.gateway.body import Ask, Body, Budget, parse
from coordinator.gateway.call import REQUEST_ID, Call, allowed_wait, ids, passed
from coordinator.gateway.dispatch import Dispatcher
from coordinator.gateway.form import Form, read_form
from coordinator.gateway.keep import Keeps
from coordinator.gateway.prefill import Prefill
from coordinator.gateway.problem import Problem
from coordinator.gateway.reply import PROGRESS, News, Phases, Reply
from coordinator.gateway.routes import Routes
from coordinator.gateway.settings import Settings
from coordinator.hosts import HostGuard, is_loopback
from coordinator.metrics import Metrics

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_IDS = web.RequestKey("ids", tuple[str, str])
_MODEL = web.RequestKey("model", str)
_FAILED = web.RequestKey("failed", int)
_CALLER = web.RequestKey("caller", str)
HEALTH = "/health"
"""Open without a key: it says nothing of models, and whoever watches over containers has none."""


class Knowledge(Protocol):
    """What the process around a gateway knows, read when a request asks for it."""

    def max_wait(self, model: str) -> float:
        """Seconds that a request for `model` may wait."""
        ...

    def objective(self, model: str) -> float | None:
        """Seconds within which the first words of an answer are wanted; None: no wish."""
        ...

    def phases(self) -> Mapping[str, str]:
        """In which phase each model is, for people."""
        ...

    def healthy(self) -> bool:
        """Whether the store answers."""
        ...


class Handlers:
    """One method a route. `closing` refuses new requests."""

    def __init__(
        self,
        settings: Settings,
        access: Access,
        routes: Routes,
        dispatcher: Dispatcher,
        keeps: Keeps,
        metrics: Metrics,
        known: Knowledge,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._access = access
        self._routes = routes
        self._dispatcher = dispatcher
        self._keeps = keeps
        self._prefill = Prefill(settings.prefill, dispatcher, clock)
        self._metrics = metrics
        self._known = known
        self._clock = clock
        self._phases = Phases(known.phases, clock)
        self._budget = Budget(settings.body_budget)
        self._created = int(time.time())
        # A page in the operator's browser must not reach a gateway that trusts whoever is on this machine.
        self._guard = HostGuard(settings.trusted_hosts) if is_loopback(settings.host) else None
        self.closing = False

    def pair(self, groups: Mapping[str, str]) -> None:
        """The prefill group of each model that has one, from now on."""
        self._prefill.groups = groups

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._answer])
        for path in surface.PATHS:
            app.router.add_post(path, self._infer)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/v1/models/{model:.+}", self._one_model)
        app.router.add_get(HEALTH, self._health)
        app.router.add_get("/running", self._running)
        app.router.add_get("/metrics", self._serve_metrics)
        return app

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Around every handler: errors get OpenAI's shape, and each request one log line and one count."""
        begun = self._clock()
        request[_IDS] = ids(request.headers)
        request[_FAILED] = 0
        request[_MODEL] = request[_CALLER] = ""
        status = 499  # nginx's word for: the client left
        try:
            response = await self._guarded(request, handler)
            status = request[_FAILED] or response.status
        except Problem as problem:
            status = problem.status
            response = _problem_response(problem, request[_IDS][0])
        finally:
            self._finished(request, status, self._clock() - begun)
        return response

    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._guard is not None and (fault := self._guard.fault(request)):
            raise Problem(403, "forbidden", fault)
        if request.path != HEALTH:
            request[_CALLER] = self._access.check(request)
        try:
            return await handler(request)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            raise Problem(error.status, "invalid_request", f"{request.method} {request.path}: {error.reason}") from None

    def _finished(self, request: web.Request, status: int, seconds: float) -> None:
        client, engine = request[_IDS]
        if request.path in surface.PATHS:
            self._metrics.request_finished(request[_MODEL], status)
            log.info(
                "%s %s model=%s caller=%s status=%d seconds=%.3f id=%s engine_id=%s",
                request.method, request.path, request[_MODEL], request[_CALLER] or "-", status, seconds, client, engine,
            )  # fmt: skip

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        if self.closing:
            raise problems.closing()
        body = Body(self._budget, self._settings.max_body)
        try:
            call, ask = await self._call(request, body)
            async with Reply(request, {REQUEST_ID: call.client_id}, self._news(call, ask, request)) as reply:
                with self._kept(call.model, ask.keep_alive):
                    return await self._through(call, ask, reply)
        finally:
            body.release()

    async def _through(self, call: Call, ask: Ask | Form, reply: Reply) -> web.StreamResponse:
        try:
            if call.path in surface.COMPLETIONS and isinstance(ask, Ask):
                call = await self._prefill.through(call, ask)
            return await self._dispatcher.serve(call, reply)
        except Problem as problem:
            await reply.close()
            if not reply.begun:
                raise
            reply.request[_FAILED] = problem.status
            return await reply.fail(problem)

    @contextmanager
    def _kept(self, model: str, seconds: float | None) -> Iterator[None]:
        """What a request says of its model's time on the device counts from its end, however it ends, if the model is
        there then: a request that waited in vain has kept nobody."""
        try:
            yield
        finally:
            if seconds is not None:
                self._keep(model, seconds)

    def _keep(self, model: str, seconds: float) -> None:
        for each in self._prefill.groups_of(model):
            if self._routes.endpoints(each):
                self._keeps.asked(each, seconds)

    def _news(self, call: Call, ask: Ask | Form, request: web.Request) -> Callable[[], bytes] | None:
        """What is told while the request waits; None: nothing was asked for, or nothing streams."""
        if request.headers.get(PROGRESS) != "1" or not (isinstance(ask, Ask) and ask.streams):
            return None

        def comment() -> bytes:
            phase, waiting = self._phases.of(call.model), self._dispatcher.waiting(call.model)
            return News(call.model, phase, waiting, round(self._clock() - call.arrived, 3)).comment()

        return comment

    async def _call(self, request: web.Request, body: Body) -> tuple[Call, Ask | Form]:
        arrived = self._clock()
        if (request.content_length or 0) > self._settings.max_body:
            raise problems.too_large(self._settings.max_body)
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                ask = await _read(request, body)
        except TimeoutError:
            raise Problem(408, "request_timeout", "the request's body did not arrive in time") from None
        model = self._routes.resolve(ask.model, self._clock())
        if model is None:
            raise problems.unknown_model(ask.model, self._routes.models)
        request[_MODEL] = model
        client_id, engine_id = request[_IDS]
        call = Call(
            model=model,
            path=request.path,
            body=ask.encode(model),
            headers=passed(request.headers, keyed=self._access.keyed),
            deadline=self._clock() + allowed_wait(request.headers, self._known.max_wait(model)),
            arrived=arrived,
            client_id=client_id,
            engine_id=engine_id,
            content_type=ask.content_type,
        )
        return call, ask

    async def _list_models(self, request: web.Request) -> web.StreamResponse:
        phases = self._known.phases()
        return _json({"object": "list", "data": [self._card(name, phases) for name in self._routes.models]})

    async def _one_model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["model"]
        model = self._routes.resolve(name, self._clock())
        if model is None:
            raise problems.unknown_model(name, self._routes.models)
        return _json(self._card(model, self._known.phases()))

    def _card(self, model: str, phases: Mapping[str, str]) -> dict[str, object]:
        """OpenAI's model object, and what a front end wants to show of its state."""
        return {
            "id": model,
            "object": "model",
            "created": self._created,
            "owned_by": "vnpu",
            "aliases": self._routes.aliases(model),
            "phase": phases.get(model, "stopped"),
        }

    async def _health(self, request: web.Request) -> web.StreamResponse:
        if self.closing:
            return _json({"status": "closing"}, status=503)
        return _json({"status": "ok" if self._known.healthy() else "degraded"})

    async def _running(self, request: web.Request) -> web.StreamResponse:
        """Models that are in device memory or on their way there."""
        phases = self._known.phases()
        running = [name for name in self._routes.models if self._routes.endpoints(name)]
        return _json({"running": [{"model": name, "state": phases.get(name, "stopped")} for name in running]})

    async def _serve_metrics(self, request: web.Request) -> web.StreamResponse:
        text, content_type = self._metrics.expose()
        return web.Response(body=text, headers={"Content-Type": content_type})


async def _read(request: web.Request, body: Body) -> Ask | Form:
    """Raises Problem for what is neither."""
    if request.path in surface.FORM_PATHS:
        return await read_form(request, body)
    return parse(await body.read(request.content.iter_any()))


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def _problem_response(problem: Problem, client_id: str) -> web.Response:
    headers = problem.headers | {REQUEST_ID: client_id}
    return web.Response(body=problem.body, status=problem.status, headers=headers, content_type="application/json")
