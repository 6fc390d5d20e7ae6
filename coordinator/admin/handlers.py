"""The operators' routes. Reading is answered from what this coordinator knows, leader or not; policy is written by
whoever is asked; `sleep` and `wake` are orders and go to the leader."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

import msgspec
from aiohttp import web

from coordinator.admin import policies
from coordinator.admin.access import Access
from coordinator.admin.feed import Feed
from coordinator.admin.leader import FORWARDED, Leader
from coordinator.core.events import OrderAsked
from coordinator.core.model import Decision, ModelId, Order, Policy
from coordinator.core.view import State
from coordinator.errors import SchemaError, StoreError
from coordinator.gateway.problem import Problem, bad_request, unknown_model
from coordinator.store import keys
from coordinator.store.base import Store
from coordinator.store.codec import decode
from coordinator.store.facts import Quarantined

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MAX_BODY = 64 << 10
QUIET_S = 15.0
"""A comment goes out that often on a stream without news, so that proxies and clients know it lives."""
ORDERS: Mapping[str, Order] = {"sleep": Order.OFFLOAD, "wake": Order.RESTORE}
POLICIES: Mapping[str, policies.Patch] = {
    "pin": policies.Patch(pin=True),
    "unpin": policies.Patch(pin=False),
    "drain": policies.Patch(drained=True),
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

    def view(self) -> State: ...

    def order(self, asked: OrderAsked) -> None:
        """Put an operator's order into the inbox."""
        ...


class Handlers:
    """One method a route."""

    def __init__(self, core: Core, store: Store, access: Access, feed: Feed, leader: Leader) -> None:
        self._core = core
        self._store = store
        self._access = access
        self._feed = feed
        self._leader = leader

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._answer], client_max_size=MAX_BODY)
        app.router.add_get("/v1/state", self._state)
        app.router.add_get("/v1/devices", self._devices)
        app.router.add_get("/v1/engines", self._engines)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/decisions", self._decisions)
        app.router.add_get("/v1/events", self._events)
        for name in ORDERS:
            app.router.add_post(f"/v1/models/{{model:.+}}/{name}", self._order)
        for name in POLICIES:
            app.router.add_post(f"/v1/models/{{model:.+}}/{name}", self._named_policy)
        app.router.add_patch("/v1/models/{model:.+}/policy", self._policy)
        return app

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Around every handler, unknown routes too: first the check, and every error as JSON."""
        try:
            self._access.check(request)
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

    async def _state(self, request: web.Request) -> web.StreamResponse:
        quarantined = [{"key": q.key, "size": q.size, "reason": q.reason} for q in self._core.quarantined]
        state = msgspec.to_builtins(self._core.view())
        return _json({"coordinator": self._core.id, **state, "quarantined": quarantined})

    async def _devices(self, request: web.Request) -> web.StreamResponse:
        return _json({"devices": self._core.view().devices})

    async def _engines(self, request: web.Request) -> web.StreamResponse:
        return _json({"engines": self._core.view().engines})

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return _json({"models": self._core.view().models})

    async def _decisions(self, request: web.Request) -> web.StreamResponse:
        """The newest first; `?limit=` of them, at most the whole ring."""
        limit = _limit(request.query.get("limit", "50"))
        listing = await self._store.list(keys.DECISIONS)
        found = [decision for kv in listing.kvs if (decision := _decision(kv.value)) is not None]
        found.sort(key=lambda decision: decision.n, reverse=True)
        return _json({"decisions": found[:limit]})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent: first `state`, then every `event` and `command` as it happens; `lagged` ends a slow reader."""
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        with self._feed.subscribe() as subscription:
            await response.prepare(request)
            await response.write(b"event: state\ndata: " + msgspec.json.encode(self._core.view()) + b"\n\n")
            while (frame := await subscription.next(QUIET_S)) is not None:
                await response.write(frame or b": quiet\n\n")
            if subscription.lagged:
                await response.write(b"event: lagged\ndata: {}\n\n")
        return response

    async def _order(self, request: web.Request) -> web.StreamResponse:
        """202: the leader has it in its inbox; what came of it shows in the state and in the decisions."""
        model = self._model(request)
        order = ORDERS[request.path.rpartition("/")[2]]
        if not self._core.leading:
            return await self._leader.forward(request)
        by = request.headers.get(FORWARDED, "")
        self._core.order(OrderAsked(ModelId(model), order))
        log.info("an operator asks to %s %s%s", order, model, " through a standby" if by else "")
        return _json({"model": model, "order": order, "accepted_by": self._core.id}, status=202)

    async def _named_policy(self, request: web.Request) -> web.StreamResponse:
        return await self._patch(self._model(request), POLICIES[request.path.rpartition("/")[2]])

    async def _policy(self, request: web.Request) -> web.StreamResponse:
        return await self._patch(self._model(request), policies.parse(await request.read()))

    async def _patch(self, model: str, patch: policies.Patch) -> web.StreamResponse:
        changed: Policy = await policies.update(self._store, model, patch.apply)
        return _json({"model": model, "policy": changed})

    def _model(self, request: web.Request) -> str:
        """Raises Problem (404) that names what exists."""
        name = request.match_info["model"]
        known = set(self._core.models)
        if name not in known:
            raise unknown_model(name, known)
        return name


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise bad_request("`limit` is not a number", "limit")
    return int(text)


def _decision(value: bytes) -> Decision | None:
    try:
        return decode(Decision, value)
    except SchemaError:
        return None


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def _problem(problem: Problem) -> web.Response:
    headers = dict(problem.headers)
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(body=problem.body, status=problem.status, headers=headers, content_type="application/json")
