"""What engines write while nothing is decided: real agents, daemon and coordinator, on a real etcd."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import aclosing
from pathlib import Path

from benchmarks.handover.setting import SECOND, Setting, running
from coordinator.store import keys

SETTLE_S = 2.0


async def writes_per_second(seconds: float) -> tuple[float, float]:
    """etcd writes under one engine's keys, and of its node's daemon, per second: resident and idle; always busy."""
    with tempfile.TemporaryDirectory(prefix="vnpu-steady-") as folder:
        async with running(Path(folder)) as setting:
            await setting.engine(SECOND)
            await asyncio.sleep(SETTLE_S)
            idle = await _written(setting, seconds)
            asking = [asyncio.create_task(_ask_on(setting)) for _ in range(4)]
            await asyncio.sleep(SETTLE_S)
            busy = await _written(setting, seconds)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            return idle / seconds, busy / seconds


async def _ask_on(setting: Setting) -> None:
    """Until cancelled: one request after the other."""
    leader = await setting.leader()
    while True:
        await setting.ask(leader, SECOND)


async def _written(setting: Setting, seconds: float) -> int:
    """Transactions that touched keys of engines or nodes within so many seconds from now."""
    first = (await setting.store.list(keys.EPOCH)).revision
    await asyncio.sleep(seconds)
    last = (await setting.store.list(keys.EPOCH)).revision
    count = 0
    async with asyncio.timeout(10), aclosing(setting.store.watch(keys.ROOT, first + 1)) as history:
        async for changes in history:
            if changes.revision > last:
                return count
            count += any(
                change.key.startswith((keys.ROOT + "engines/", keys.ROOT + "nodes/")) for change in changes.changes
            )
    return count
