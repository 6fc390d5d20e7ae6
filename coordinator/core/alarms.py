"""When to look again though nothing happens: one time for each model and each device."""

from __future__ import annotations

import heapq

Key = tuple[str, str]
"""("model" or "device", its id)."""


class Alarms:
    """The earliest wanted time of each key, in monotonic seconds. Cheap at any number of keys: a heap from which
    outdated times fall out as they come up."""

    def __init__(self) -> None:
        self._at: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def set(self, kind: str, name: str, at: float) -> None:
        """Look at it no later than `at` (infinity: no wish)."""
        key = (kind, name)
        if at == float("inf") or at >= self._at.get(key, float("inf")):
            return
        self._at[key] = at
        heapq.heappush(self._heap, (at, key))
        if len(self._heap) > 64 + 4 * len(self._at):
            self._heap = [(wanted, key) for key, wanted in self._at.items()]
            heapq.heapify(self._heap)

    def clear(self, kind: str, name: str) -> None:
        self._at.pop((kind, name), None)

    def clear_all(self) -> None:
        self._at.clear()
        self._heap.clear()

    def due(self, now: float) -> list[Key]:
        """Keys whose time has come; they are cleared."""
        keys = []
        while (at := self.next()) is not None and at <= now:
            key = heapq.heappop(self._heap)[1]
            del self._at[key]
            keys.append(key)
        return keys

    def next(self) -> float | None:
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
