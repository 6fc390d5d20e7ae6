"""A lab with light engines: started into it, and brought up as a leader does."""

from __future__ import annotations

import itertools

from coordinator.core.model import Order
from tests.helpers.lab import Lab
from tests.helpers.light_engine import LightEngine

_numbers = itertools.count()


class LightLab(Lab):
    """With engines started into it."""

    async def start(self, name: str = "", **options: object) -> LightEngine:
        name = name or f"light-{next(_numbers)}"
        return await LightEngine.start(self.folder, self.etcd.url, name, node=self.daemon.node, **options)  # type: ignore[arg-type]

    async def bring_up(self, name: str = "", **options: object) -> LightEngine:
        engine = await self.start(name, **options)
        await self.order(engine, Order.RESTORE)
        await self.spec(engine, lambda spec: spec.measured)
        return engine
