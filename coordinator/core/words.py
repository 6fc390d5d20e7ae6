"""Figures in sentences that people read."""

from __future__ import annotations

from collections.abc import Iterable


def size(count: int) -> str:
    """Bytes as people say them: `512 MiB`, `1.5 GiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"


def requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"


def names(engines: Iterable[str]) -> str:
    return ", ".join(sorted(engines))
