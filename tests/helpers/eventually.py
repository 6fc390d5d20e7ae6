"""Wait for what no event announces. Only where there is none: a state read from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE_S = 60.0


async def eventually(holds: Callable[[], bool], what: str = "it", patience_s: float = PATIENCE_S) -> None:
    """Returns as soon as `holds()`; fails after a generous time."""
    async with asyncio.timeout(patience_s):
        while True:
            if holds():
                return
            await asyncio.sleep(0.005)
