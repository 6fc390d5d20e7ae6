"""The operators' routes, one method each, as `operations` names them. Reading is answered from what this coordinator
knows, leader or not; policy is written by whoever is asked; `sleep` and `wake` are orders and go to the leader."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

import msgspec
from aiohttp import web

from coordinator.admin import answers, policies
from coordinator.admin.access import READS, Access
from coordinator.admin.feed import Feed
from coordinator.admin.keyring import Caller
from coordinator.admin.leader import FORWARDED, Leader
from coordinator.admin.openapi import document
from coordinator.admin.operations import OPERATIONS
from coordinator.admin.page import FILES, Page
from coordinator.admin.stream import Stream, View, wanted
from coordinator.core.events import OrderAsked
from coordinator.core.model import Decision, EngineId, ModelId, Order, Policy
from coordinator.core.settings import Settings
from coordinator.core.view import PolicyState, State
from coordinator.core.why import concerns, why
from coordinator.errors import ConfigError, SchemaError, StoreError
from coordinator.gateway.problem import Problem, bad_request, unknown_model
from coordinator.history import History
from coordinator.reload import Report
from coordinator.store import keys
from coordinator.store.base import Store
from coordinator.store.codec import decode
from coordinator.store.facts import Quarantined

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MAX_BODY = 64 << 10
CALLER = web.RequestKey("caller", Caller)
ORDERS: Mapping[str, Order] = {"sleep": Order.OFFLOAD, "wake": Order.RESTORE}
POLICIES: Mapping[str, policies.Patch] = {
    "pin": policies.Patch(pin=True),
    "unpin": policies.Patch(pin=False),
    "drain": policies.Patch(drained=True),
    "resume": policies.Patch(drained=False),
}


class Core(Protocol):
    """The coordinator behind the API."""

    @property
    def id(self) -> str: ...

    @property
    def leading(self) -> bool: ...

    @property
    def models(self) -> Iterable[str]:
        """Every model that is configured or has an engine."""
        ...

    @property
    def quarantined(self) -> Iterable[Quarantined]:
        """Values in etcd that do not decode and are not obeyed."""
        ...

    @property
    def history(self) -> History: ...

    @property
    def eviction(self) -> PolicyState: ...

    def view(self) -> State: ...

    def configured(self, model: ModelId) -> tuple[Settings, Policy | None]:
        """As the file has it, and what stands in etcd over that."""
        ...

    def order(self, asked: OrderAsked) -> None:
        """Put an operator's order into the inbox."""
        ...

    async def reload(self) -> Report:
        """Read the configuration file again. Raises ConfigError."""
        ...


class Handlers:
    """See the module."""

    def __init__(self, core: Core, store: Store, access: Access, feed: Feed, leader: Leader) -> None:
        self._core = core
        self._store = store
        self._access = access
        self._feed = feed
        self._leader = leader
        self._view = View(feed)
        self._page = Page()
        self._document = msgspec.json.encode(document())

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._answer], client_max_size=MAX_BODY)
        app.router.add_get("/openapi.json", self.openapi)
        for path in FILES:
            app.router.add_get(path, self.page)
        for one in OPERATIONS:
            app.router.add_route(one.method, one.route, getattr(self, one.handler))
        return app

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Around every handler, unknown routes too: first the check, every error as JSON, every command audited."""
        answer: web.StreamResponse = web.Response(status=500)
        try:
            answer = await self._checked(request, handler)
        finally:
            if request.method not in READS:
                self._access.audit(request, answer.status, request.headers.get(FORWARDED, ""))
        return answer

    async def _checked(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.method in READS and request.path in FILES:
                self._access.guard(request)
            else:
                request[CALLER] = self._access.check(request)
            return await handler(request)
        except Problem as problem:
            return _problem(problem)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return _problem(
                Problem(error.status, "invalid_request", f"{request.method} {request.path}: {error.reason}")
            )
        except StoreError as error:
            return _problem(Problem(503, "store_unavailable", f"etcd: {error}", retry_after=2))

    # ---- what is

    async def page(self, request: web.Request) -> web.StreamResponse:
        return self._page.answer(request)

    async def openapi(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self._document, content_type="application/json")

    async def state(self, request: web.Request) -> web.StreamResponse:
        bad = tuple(answers.Bad(q.key, q.size, q.reason) for q in self._core.quarantined)
        return _json(answers.Whole.of(self._core.view(), self._core.id, bad))

    async def devices(self, request: web.Request) -> web.StreamResponse:
        return _json(answers.Devices(self._core.view().devices))

    async def tokens(self, request: web.Request) -> web.StreamResponse:
        view = self._core.view()
        return _json(answers.Tokens(tuple(answers.token_of(device, view.epoch) for device in view.devices)))

    async def engines(self, request: web.Request) -> web.StreamResponse:
        return _json(answers.Engines(self._core.view().engines))

    async def models(self, request: web.Request) -> web.StreamResponse:
        return _json(answers.Models(self._core.view().models))

    async def model(self, request: web.Request) -> web.StreamResponse:
        name = self._model(request)
        view = self._core.view()
        configured, policy = self._core.configured(ModelId(name))
        state = next((one for one in view.models if one.id == name), None)
        engines = tuple(one for one in view.engines if one.model == name)
        return _json(answers.OneModel(name, configured, policy or Policy(), state, engines))

    async def history(self, request: web.Request) -> web.StreamResponse:
        history = self._core.history
        return _json(answers.History(tuple(history.samples), tuple(history.switches), history.ttfts))

    # ---- what was decided

    async def decisions(self, request: web.Request) -> web.StreamResponse:
        """The newest first; at most the whole ring."""
        limit = _limit(request, 50)
        found = await self._decided()
        if "model" in request.query:
            name = request.query["model"]
            own = self._engines_of(name)
            found = [each for each in found if concerns(name, own, each)]
        return _json(answers.Decisions(tuple(found[:limit])))

    async def why(self, request: web.Request) -> web.StreamResponse:
        name, limit = self._model(request), _limit(request, 5)
        told = why(name, self._engines_of(name), await self._decided(), limit)
        return _json(answers.WhyAnswer(name, tuple(told)))

    async def eviction(self, request: web.Request) -> web.StreamResponse:
        judged = [each for each in await self._decided() if each.shadow]
        differed = tuple(each for each in judged if not each.shadow.endswith(": the same"))
        return _json(answers.Eviction(self._core.eviction, len(judged), differed))

    async def _decided(self) -> list[Decision]:
        """What stands in etcd, the newest first."""
        listing = await self._store.list(keys.DECISIONS)
        found = [decision for kv in listing.kvs if (decision := _decision(kv.value)) is not None]
        return sorted(found, key=lambda decision: decision.n, reverse=True)

    def _engines_of(self, model: str) -> set[str]:
        return {EngineId(one.id) for one in self._core.view().engines if one.model == model}

    async def events(self, request: web.Request) -> web.StreamResponse:
        """`?kinds=` chooses; `lagged` ends a slow reader."""
        kinds = wanted(request.query.get("kinds"))
        return await Stream(self._feed, self._view, kinds).run(request, self._core)

    # ---- what is to be

    async def order(self, request: web.Request) -> web.StreamResponse:
        """202: the leader has it in its inbox; what came of it shows in the state and in the decisions."""
        model = self._model(request)
        order = ORDERS[request.path.rpartition("/")[2]]
        if not self._core.leading:
            return await self._leader.forward(request)
        self._core.order(OrderAsked(ModelId(model), order, request[CALLER].name))
        return _json(answers.OrderAnswer(model, order, self._core.id), status=202)

    async def named_policy(self, request: web.Request) -> web.StreamResponse:
        return await self._patch(self._model(request), POLICIES[request.path.rpartition("/")[2]])

    async def policy(self, request: web.Request) -> web.StreamResponse:
        return await self._patch(self._model(request), policies.parse(await request.read()))

    async def _patch(self, model: str, patch: policies.Patch) -> web.StreamResponse:
        changed: Policy = await policies.update(self._store, model, patch.apply)
        return _json(answers.PolicyAnswer(model, changed))

    async def reload(self, request: web.Request) -> web.StreamResponse:
        """Of this coordinator: each reads its own file."""
        try:
            return _json(await self._core.reload())
        except ConfigError as error:
            raise Problem(400, "config_invalid", str(error)) from None

    def _model(self, request: web.Request) -> str:
        """Raises Problem (404) that names what exists."""
        name = request.match_info["model"]
        known = set(self._core.models)
        if name not in known:
            raise unknown_model(name, known)
        return name


def _limit(request: web.Request, default: int) -> int:
    text = request.query.get("limit", str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise bad_request("`limit` is not a number", "limit")
    return int(text)


def _decision(value: bytes) -> Decision | None:
    try:
        return decode(Decision, value)
    except SchemaError:
        return None


def _json(value: msgspec.Struct, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def _problem(problem: Problem) -> web.Response:
    headers = dict(problem.headers)
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(body=problem.body, status=problem.status, headers=headers, content_type="application/json")
