"""When models are used: what a policy may know of the past, learned from events alone.

A *use* of a model begins when requests for it are somewhere (at a gateway, in an engine) and nothing was before, and
ends when none is left. Everything here is bounded: `KEPT` gaps a model, `POOLED` a neighbourhood, which is the device
on which the model's first engine lives. A standby sees the same keys and so learns the same; a new leader starts with
what it has seen as a standby.
"""

from __future__ import annotations

from collections import deque

import msgspec

from coordinator.core.model import DeviceId, ModelId

KEPT = 24
POOLED = 64
MERGE_S = 0.5
"""A pause this short is none: a request that moves from gateway to engine is nowhere for a moment."""


class Neighbourhood(msgspec.Struct):
    """A device's pace. `turn`: how often its use went over to another model; `gaps`: the newest gaps of all its models
    in seconds; `restores` since `since`, both forgotten slowly."""

    device: DeviceId
    since: float
    turn: int = 0
    last: ModelId | None = None
    gaps: deque[float] = msgspec.field(default_factory=lambda: deque(maxlen=POOLED))
    restores: deque[tuple[float, int]] = msgspec.field(default_factory=lambda: deque(maxlen=POOLED))
    """(time, turn) of the newest restores."""

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


class Arrivals:
    """All habits. `note` after every event that may have begun or ended a use."""

    def __init__(self) -> None:
        self._habits: dict[ModelId, Habit] = {}
        self._around: dict[DeviceId, Neighbourhood] = {}

    def of(self, model: ModelId) -> Habit | None:
        return self._habits.get(model)

    def around(self, device: DeviceId, now: float) -> Neighbourhood:
        return self._around.setdefault(device, Neighbourhood(device, now))

    def note(self, model: ModelId, place: DeviceId | None, now: float, *, active: bool) -> None:
        """Whether `model` is in use now; `place`: where its first engine lives, None: nowhere."""
        habit = self._habits.get(model)
        if habit is None:
            if not active:
                return
            habit = self._habits[model] = Habit(now, float("-inf"), place)
        if habit.place != place:
            self._move(habit, place, now)
        if active and not habit.active:
            self._begin(model, habit, now)
        elif habit.active and not active:
            habit.until = now
        habit.active = active

    def restored(self, device: DeviceId, now: float) -> None:
        """A restore was ordered there."""
        around = self.around(device, now)
        around.restores.append((now, around.turn))

    def forget(self, model: ModelId) -> None:
        """No engine has it and nobody asks for it."""
        self._habits.pop(model, None)

    def _move(self, habit: Habit, place: DeviceId | None, now: float) -> None:
        """It lives elsewhere now: turns were counted there."""
        habit.place = place
        habit.turn = self.around(place, now).turn if place is not None else 0
        habit.turns.clear()

    def _begin(self, model: ModelId, habit: Habit, now: float) -> None:
        if now - habit.until < MERGE_S:
            return
        around = self.around(habit.place, now) if habit.place is not None else None
        if around is None:
            habit.uses += 1
            habit.began.append(now)
            return
        other = around.last != model
        if other:
            around.turn += 1
            around.last = model
            habit.began.append(now)
        if habit.uses and other:
            habit.gaps.append(now - habit.until)
            habit.turns.append(around.turn - habit.turn)
            around.gaps.append(now - habit.until)
        habit.uses += 1
        habit.turn = around.turn
