"""Telling those who wait that it is in vain: once for a cause, and again only for demand that is new."""

from __future__ import annotations

import msgspec

from coordinator.core.commands import Refuse
from coordinator.core.model import ModelId


class _Said(msgspec.Struct, frozen=True):
    reason: str
    waiting: int


class Refusals:
    """What was told to whom. `waiting` counts requests at gateways: they are who is told."""

    def __init__(self) -> None:
        self._said: dict[ModelId, _Said] = {}

    def reason(self, model: ModelId) -> str:
        """Why it cannot be served; empty: nothing is known against it."""
        said = self._said.get(model)
        return said.reason if said is not None else ""

    def consider(self, model: ModelId, reason: str, waiting: int, retry_after_s: float) -> Refuse | None:
        """`model` cannot be served for `reason`: the refusal, unless all who wait have heard it."""
        before = self._said.get(model)
        self._said[model] = _Said(reason, waiting)
        heard = before is not None and before.reason == reason and waiting <= before.waiting
        return None if heard or not waiting else Refuse(model, reason, retry_after_s)

    def left(self, model: ModelId, waiting: int) -> None:
        """So many still wait: whoever comes from now on is new."""
        said = self._said.get(model)
        if said is not None and waiting < said.waiting:
            self._said[model] = _Said(said.reason, waiting)

    def lift(self, model: ModelId) -> None:
        """It can be served, or nobody wants it any more."""
        self._said.pop(model, None)

    def clear(self) -> None:
        self._said.clear()
