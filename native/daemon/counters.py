"""How often things were done, how long they took, and how many bytes they moved. PURE."""

from __future__ import annotations

from coordinator.core.model import Work


class Counters:
    """By name. Seconds and bytes since the daemon started."""

    def __init__(self) -> None:
        self._all: dict[str, dict[str, float]] = {}

    def took(self, name: str, seconds: float, moved: int = 0) -> None:
        """It was done once more; `moved`: bytes."""
        one = self._all.setdefault(name, {"count": 0, "seconds": 0.0, "longest": 0.0, "bytes": 0})
        one["count"] += 1
        one["seconds"] += seconds
        one["longest"] = max(one["longest"], seconds)
        one["bytes"] += moved

    def work(self) -> tuple[Work, ...]:
        """For the device key."""
        all_ = sorted(self._all.items())
        return tuple(Work(name, int(one["count"]), one["seconds"], int(one["bytes"])) for name, one in all_)

    def facts(self) -> dict[str, dict[str, float]]:
        """`count`, `seconds` (all together), `longest` and `bytes` of each."""
        return {name: dict(one) for name, one in sorted(self._all.items())}
