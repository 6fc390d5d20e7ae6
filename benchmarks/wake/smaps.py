"""Bytes of an engine's weights that lie in device pages, as the kernel counts them."""

from __future__ import annotations

import psutil

from engine_patch.host_bus import RESERVED, WEIGHTS_AT
from native import smaps


def device_bytes(api_server: int) -> int:
    """Resident bytes of the weights' region over all processes of the engine whose API server has this pid."""
    family = psutil.Process(api_server).children(recursive=True)
    return sum(smaps.resident(WEIGHTS_AT, RESERVED, process.pid).resident for process in family)
