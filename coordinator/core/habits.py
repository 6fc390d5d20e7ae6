"""What is known of when one model, and one device's models, were used. `core.arrivals` keeps it."""

from __future__ import annotations

from collections import deque

import msgspec

from coordinator.core.model import DeviceId, ModelId

KEPT = 24
POOLED = 64
RECENT = 16


class Neighbourhood(msgspec.Struct):
    """A device's pace. `turn`: how often its use went over to another model; `gaps`: the newest gaps of all its models
    in seconds; `restores` since `since`, both forgotten slowly; `residents`: how many were there at the newest restore;
    `recent`: habits of the models used here last, the newest at the end.

    `odds`: by how much plain recency has foretold uses better than their gaps have (`policies.reuse.weigh`), as the
    logarithm of a ratio of probabilities."""

    device: DeviceId
    since: float
    turn: int = 0
    last: ModelId | None = None
    gaps: deque[float] = msgspec.field(default_factory=lambda: deque(maxlen=POOLED))
    restores: deque[tuple[float, int]] = msgspec.field(default_factory=lambda: deque(maxlen=POOLED))
    """(time, turn) of the newest restores."""
    residents: int = 1
    odds: float = 0.0
    recent: dict[ModelId, Habit] = {}

    def pace(self, now: float) -> tuple[float, float]:
        """Seconds and turns from one restore to the next."""
        if not self.restores:
            return max(now - self.since, 1.0), float(max(1, self.turn))
        at, turn = self.restores[0] if len(self.restores) == POOLED else (self.since, 0)
        count = len(self.restores)
        return max((now - at) / count, 1e-3), max((self.turn - turn) / count, 1e-3)


class Habit(msgspec.Struct):
    """One model's uses. `until`: the end of the last one (while `active`: not over). Gaps lie between the end of a use
    and the beginning of the next, in seconds and in turns of its neighbourhood; gaps in which nobody else was used are
    not kept, they say nothing about when to leave."""

    first: float
    until: float
    place: DeviceId | None
    active: bool = False
    uses: int = 0
    turn: int = 0
    gaps: deque[float] = msgspec.field(default_factory=lambda: deque(maxlen=KEPT))
    turns: deque[int] = msgspec.field(default_factory=lambda: deque(maxlen=KEPT))
    began: deque[float] = msgspec.field(default_factory=lambda: deque(maxlen=KEPT))
    """Beginnings of the newest uses."""

    def rate(self, since: float, now: float) -> float:
        """Uses a second, by the newest ones."""
        at = self.began[0] if len(self.began) == KEPT else since
        return len(self.began) / max(1.0, now - at)
