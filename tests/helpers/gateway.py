"""A gateway without a coordinator around it: routes are handed in by the test, demand is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import ClientResponse, ClientSession
from aiohttp.client import _RequestContextManager

from coordinator.core.commands import Endpoint, Route
from coordinator.core.model import EngineId, ModelId
from coordinator.core.view import State
from coordinator.gateway.app import Gateway
from coordinator.gateway.settings import Settings
from coordinator.metrics import Metrics


class Known:
    """What a coordinator would know."""

    def __init__(self) -> None:
        self.max_wait_s = 60.0
        self.healthy_now = True
        self.objective_s: float | None = None
        self.phases_now: dict[str, str] = {}

    def max_wait(self, model: str) -> float:
        return self.max_wait_s

    def objective(self, model: str) -> float | None:
        return self.objective_s

    def phases(self) -> Mapping[str, str]:
        return self.phases_now

    def healthy(self) -> bool:
        return self.healthy_now


class Bench:
    """A running gateway and a client of it. `demand` is the latest per model, `heard` every change, `kept` what was
    told of `keep_alive`."""

    def __init__(self, session: ClientSession) -> None:
        self.session = session
        self.known = Known()
        self.metrics = Metrics(lambda: State(leading=False, epoch=None, revision=0))
        self.demand: dict[str, int] = {}
        self.heard: list[tuple[str, int]] = []
        self.kept: list[tuple[str, float | None]] = []
        self._changed = asyncio.Event()
        self.gateway: Gateway

    def on_demand(self, model: str, waiting: int) -> None:
        self.demand[model] = waiting
        self.heard.append((model, waiting))
        self._changed.set()

    def on_kept(self, model: str, seconds: float | None) -> None:
        self.kept.append((model, seconds))
        self._changed.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until `reached()`, looked at after each change of demand."""
        while not reached():
            self._changed.clear()
            await self._changed.wait()

    async def until_waiting(self, model: str, count: int) -> None:
        await self.until(lambda: self.demand.get(model, 0) == count)

    def route(self, model: str, *urls: str, aliases: tuple[str, ...] = (), gone: bool = False) -> None:
        endpoints = tuple(Endpoint(EngineId(f"{model}@{url}"), url) for url in urls)
        self.gateway.route(Route(ModelId(model), endpoints, aliases, gone))

    def post(
        self, body: object, path: str = "/v1/completions", headers: Mapping[str, str] | None = None
    ) -> _RequestContextManager:
        kwargs: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body}
        return self.session.post(self.gateway.url + path, headers=headers, **kwargs)

    async def ask(self, model: str, **fields: object) -> tuple[int, dict[str, Any]]:
        """(status, answer) of one completion."""
        async with self.post({"model": model, "prompt": "hello", **fields}) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[ClientResponse, bytes]:
        async with self.session.get(self.gateway.url + path, headers=headers) as answer:
            return answer, await answer.read()


@asynccontextmanager
async def gateway(**settings: Any) -> AsyncIterator[Bench]:
    """A gateway on a free port with these `Settings`."""
    async with ClientSession() as session:
        bench = Bench(session)
        settings = {"port": 0, "drain_s": 5.0, **settings}
        bench.gateway = Gateway(Settings(**settings), bench.metrics, bench.on_demand, bench.known, bench.on_kept)
        async with bench.gateway:
            yield bench
