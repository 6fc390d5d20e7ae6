"""Small pieces between the runtime and what feeds its inbox."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from coordinator.core.events import DemandSeen
from coordinator.core.model import Demand, ModelId


class Reached:
    """Up to which revision the inbox holds what happened."""

    def __init__(self) -> None:
        self._revision = 0
        self._moved = asyncio.Event()

    def move(self, revision: int) -> None:
        self._revision = revision
        self._moved.set()

    async def until(self, revision: int) -> None:
        while self._revision < revision:
            self._moved.clear()
            await self._moved.wait()


class DemandPost:
    """Turns changes of a gateway's queues into events: the first at once, those of one turn of the loop together."""

    def __init__(self, gateway: str, post: Callable[[DemandSeen], None]) -> None:
        self._gateway = gateway
        self._post = post
        self._changed: dict[str, int] = {}

    def changed(self, model: str, waiting: int) -> None:
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._flush)
        self._changed[model] = waiting

    def _flush(self) -> None:
        changed, self._changed = self._changed, {}
        for model, waiting in changed.items():
            demand = Demand(waiting=waiting) if waiting else None
            self._post(DemandSeen(self._gateway, ModelId(model), demand))
