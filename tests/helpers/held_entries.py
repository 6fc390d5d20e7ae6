"""An agent whose entries at the daemon wait for the test; for a process of its own, see `light_engine`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any


def hold_entries(until: Callable[[], Awaitable[None]]) -> None:
    """From now on every agent of this process waits for `until` before it enters."""
    from engine_patch.errands import Errands

    enter = Errands.enter

    async def held(errands: Any, device: str, fence: Any) -> None:
        await until()
        await enter(errands, device, fence)

    Errands.enter = held  # type: ignore[method-assign]
