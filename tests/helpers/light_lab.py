"""A lab with light engines: started into it, and brought up as a leader does."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from coordinator.core.model import Order
from tests.helpers.daemon import DaemonProcess
from tests.helpers.etcd import RealEtcd
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


@asynccontextmanager
async def light_lab(
    folder: Path, etcd: RealEtcd, capacity: int, *, driver: str = "host", host_ram: str = ""
) -> AsyncIterator[LightLab]:
    """A node of its own with one device of `capacity` bytes, and an elected leader, on an etcd that runs. `host_ram`:
    the daemon's option of that name."""
    store = etcd.client()
    devices, more = [f"0:{driver}:{capacity}"], ("--host-ram", host_ram) if host_ram else ()
    with DaemonProcess(folder, etcd.url, node=f"light-{next(_numbers)}", devices=devices, more=more) as daemon:
        lab = LightLab(folder, etcd, await daemon.ready(store), store)
        await lab.leader.elect()
        yield lab
    await store.close()
