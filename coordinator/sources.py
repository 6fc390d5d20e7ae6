"""Small pieces between the runtime and what feeds its inbox."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

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
    and before it the lowest of a dip, which says that somebody left and somebody new came. With them goes how long
    requests want a model kept (seconds, below 0: until its memory is needed)."""

    def __init__(self, gateway: str, post: Callable[[DemandSeen], None]) -> None:
        self._gateway = gateway
        self._post = post
        self._posted: dict[str, int] = {}
        self._changed: dict[str, tuple[int, int]] = {}
        """Lowest and last."""
        self._keeps: dict[str, float] = {}

    def kept(self, model: str, keep_alive: float | None) -> None:
        """None: no request says anything any more."""
        if keep_alive is None:
            self._keeps.pop(model, None)
        else:
            self._keeps[model] = keep_alive
        _, waiting = self._changed.get(model, (0, self._posted.get(model, 0)))
        self.changed(model, waiting)

    def standing(self, waiting: Mapping[str, int]) -> dict[str, Demand]:
        """What there is to say, where so many wait."""
        said = {model: self._demand(model, waiting.get(model, 0)) for model in {*waiting, *self._keeps}}
        return {model: demand for model, demand in said.items() if demand is not None}

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
        self._post(DemandSeen(self._gateway, ModelId(model), self._demand(model, waiting)))

    def _demand(self, model: str, waiting: int) -> Demand | None:
        keep_alive = self._keeps.get(model)
        return Demand(waiting=waiting, keep_alive=keep_alive) if waiting or keep_alive is not None else None
