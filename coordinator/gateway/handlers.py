"""The gateway's routes: what engines answer (`surface`), OpenAI's models, and `/health`, `/running`, `/metrics`.

Model ids may hold slashes, raw or escaped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec

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
from coordinator.http1.request import Request
from coordinator.http1.response import Response
from coordinator.metrics import Metrics

log = logging.getLogger(__name__)


class Trace(msgspec.Struct):
    """What is logged and counted of a request when it ends. `failed`: the status it should have had, where another had
    gone out before."""

    client_id: str
    engine_id: str
    model: str = ""
    caller: str = ""
    failed: int = 0


Handler = Callable[[Request, Response, Trace], Awaitable[None]]
JSON = "application/json"
MODELS = "/v1/models"
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
        self._pages: Mapping[str, Handler] = {
            MODELS: self._list_models,
            HEALTH: self._health,
            "/running": self._running,
            "/metrics": self._serve_metrics,
        }
        self.closing = False

    def pair(self, groups: Mapping[str, str]) -> None:
        """The prefill group of each model that has one, from now on."""
        self._prefill.groups = groups

    async def answer(self, request: Request, response: Response) -> None:
        """Any request: errors get OpenAI's shape, and each request of an engine one log line and one count."""
        begun = self._clock()
        trace = Trace(*ids(request.headers))
        status = 499  # nginx's word for: the client left
        try:
            await self._guarded(request, response, trace)
            status = trace.failed or response.status
        except Problem as problem:
            status = problem.status
            headers = {"Content-Type": JSON, REQUEST_ID: trace.client_id, **problem.headers}
            response.whole(status, headers, problem.body)
        finally:
            self._finished(request, trace, status, self._clock() - begun)

    async def _guarded(self, request: Request, response: Response, trace: Trace) -> None:
        if self._guard is not None and (fault := self._guard.fault(request)):
            raise Problem(403, "forbidden", fault)
        if request.path != HEALTH:
            trace.caller = self._access.check(request)
        if request.path in surface.PATHS:
            _check_method(request, "POST")
            await self._infer(request, response, trace)
        elif (page := self._page(request.path)) is not None:
            _check_method(request, "GET", "HEAD")
            await page(request, response, trace)
        else:
            raise Problem(404, "invalid_request", f"{request.method} {request.path}: Not Found")

    def _page(self, path: str) -> Handler | None:
        return self._one_model if path.startswith(MODELS + "/") else self._pages.get(path)

    def _finished(self, request: Request, trace: Trace, status: int, seconds: float) -> None:
        if request.path in surface.PATHS:
            self._metrics.request_finished(trace.model, status)
            log.info(
                "%s %s model=%s caller=%s status=%d seconds=%.3f id=%s engine_id=%s",
                request.method, request.path, trace.model, trace.caller or "-", status, seconds,
                trace.client_id, trace.engine_id,
            )  # fmt: skip

    async def _infer(self, request: Request, response: Response, trace: Trace) -> None:
        if self.closing:
            raise problems.closing()
        body = Body(self._budget, self._settings.max_body)
        try:
            call, ask = await self._call(request, body, trace)
            try:
                reply = Reply(request, response, {REQUEST_ID: call.client_id}, self._news(call, ask, request))
                async with reply:
                    await self._through(call, ask, reply, trace)
            finally:
                self._kept(call.model, ask.keep_alive)
        finally:
            body.release()

    async def _through(self, call: Call, ask: Ask | Form, reply: Reply, trace: Trace) -> None:
        try:
            if call.path in surface.COMPLETIONS and isinstance(ask, Ask):
                call = await self._prefill.through(call, ask)
            await self._dispatcher.serve(call, reply)
        except Problem as problem:
            await reply.close()
            if not reply.begun:
                raise
            trace.failed = problem.status
            await reply.fail(problem)

    def _kept(self, model: str, seconds: float | None) -> None:
        """What a request says of its model's time on the device counts from its end, however it ends, if the model is
        there then: a request that waited in vain has kept nobody."""
        if seconds is None:
            return
        for each in self._prefill.groups_of(model):
            if self._routes.endpoints(each):
                self._keeps.asked(each, seconds)

    def _news(self, call: Call, ask: Ask | Form, request: Request) -> Callable[[], bytes] | None:
        """What is told while the request waits; None: nothing was asked for, or nothing streams."""
        if request.headers.get(PROGRESS) != "1" or not (isinstance(ask, Ask) and ask.streams):
            return None

        def comment() -> bytes:
            phase, waiting = self._phases.of(call.model), self._dispatcher.waiting(call.model)
            return News(call.model, phase, waiting, round(self._clock() - call.arrived, 3)).comment()

        return comment

    async def _call(self, request: Request, body: Body, trace: Trace) -> tuple[Call, Ask | Form]:
        arrived = self._clock()
        if (request.content_length or 0) > self._settings.max_body:
            raise problems.too_large(self._settings.max_body)
        ask = await (_read(request, body) if request.whole else self._read_in_time(request, body))
        model = self._routes.resolve(ask.model, self._clock())
        if model is None:
            raise problems.unknown_model(ask.model, self._routes.models)
        trace.model = model
        call = Call(
            model=model,
            path=request.path,
            body=ask.encode(model),
            headers=passed(request.headers, keyed=self._access.keyed),
            deadline=self._clock() + allowed_wait(request.headers, self._known.max_wait(model)),
            arrived=arrived,
            client_id=trace.client_id,
            engine_id=trace.engine_id,
            content_type=ask.content_type,
        )
        return call, ask

    async def _read_in_time(self, request: Request, body: Body) -> Ask | Form:
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                return await _read(request, body)
        except TimeoutError:
            raise Problem(408, "request_timeout", "the request's body did not arrive in time") from None

    async def _list_models(self, request: Request, response: Response, trace: Trace) -> None:
        phases = self._known.phases()
        cards = [self._card(name, phases) for name in self._routes.models]
        _json(response, {"object": "list", "data": cards})

    async def _one_model(self, request: Request, response: Response, trace: Trace) -> None:
        name = request.path.removeprefix(MODELS + "/")
        model = self._routes.resolve(name, self._clock())
        if model is None:
            raise problems.unknown_model(name, self._routes.models)
        _json(response, self._card(model, self._known.phases()))

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

    async def _health(self, request: Request, response: Response, trace: Trace) -> None:
        if self.closing:
            _json(response, {"status": "closing"}, status=503)
        else:
            _json(response, {"status": "ok" if self._known.healthy() else "degraded"})

    async def _running(self, request: Request, response: Response, trace: Trace) -> None:
        """Models that are in device memory or on their way there."""
        phases = self._known.phases()
        running = [name for name in self._routes.models if self._routes.endpoints(name)]
        _json(response, {"running": [{"model": name, "state": phases.get(name, "stopped")} for name in running]})

    async def _serve_metrics(self, request: Request, response: Response, trace: Trace) -> None:
        text, content_type = self._metrics.expose()
        response.whole(200, {"Content-Type": content_type}, text)


def _check_method(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise Problem(405, "invalid_request", f"{request.method} {request.path}: not allowed; send {methods[0]}")


async def _read(request: Request, body: Body) -> Ask | Form:
    """Raises Problem for what is neither."""
    if request.path in surface.FORM_PATHS:
        return await read_form(request, body)
    if request.whole:
        return parse(body.charge(request.here()))
    return parse(await body.read(request.chunks()))


def _json(response: Response, value: object, status: int = 200) -> None:
    response.whole(status, {"Content-Type": JSON}, msgspec.json.encode(value))
