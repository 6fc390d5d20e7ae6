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
    """Turns changes of a gateway's queues into events, those of one turn of the loop together: how many wait at last,
    and before it the lowest of a dip, which says that somebody left and somebody new came."""

    def __init__(self, gateway: str, post: Callable[[DemandSeen], None]) -> None:
        self._gateway = gateway
        self._post = post
        self._posted: dict[str, int] = {}
        self._changed: dict[str, tuple[int, int]] = {}
        """Lowest and last."""

    def changed(self, model: str, waiting: int) -> None:
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._flush)
        lowest, _ = self._changed.get(model, (waiting, waiting))
        self._changed[model] = (min(lowest, waiting), waiting)

    def _flush(self) -> None:
        changed, self._changed = self._changed, {}
        for model, (lowest, last) in changed.items():
            if lowest < min(last, self._posted.pop(model, 0)):
                self._tell(model, lowest)
            self._tell(model, last)
            if last:
                self._posted[model] = last

    def _tell(self, model: str, waiting: int) -> None:
        self._post(DemandSeen(self._gateway, ModelId(model), Demand(waiting=waiting) if waiting else None))
