"""When models are used: what a policy may know of the past, learned from events alone.

A *use* of a model begins when requests for it are somewhere (at a gateway, in an engine) and nothing was before, and
ends when none is left. Everything here is bounded: `KEPT` gaps a model, `POOLED` a neighbourhood, which is the device
on which the model's first engine lives. A standby sees the same keys and so learns the same; a new leader starts with
what it has seen as a standby.
"""

from __future__ import annotations

from coordinator.core.habits import RECENT, Habit, Neighbourhood
from coordinator.core.model import DeviceId, ModelId
from coordinator.core.policies.reuse import weigh

MERGE_S = 0.5
"""A pause this short is none: a request that moves from gateway to engine is nowhere for a moment."""


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
            self._move(model, habit, place, now)
        if active and not habit.active:
            self._begin(model, habit, now)
        elif habit.active and not active:
            habit.until = now
        habit.active = active

    def restored(self, device: DeviceId, now: float, residents: int) -> None:
        """A restore was ordered there: with it there are so many residents."""
        around = self.around(device, now)
        around.residents = max(1, residents)
        around.restores.append((now, around.turn))

    def forget(self, model: ModelId) -> None:
        """No engine has it and nobody asks for it."""
        habit = self._habits.pop(model, None)
        if habit is not None and habit.place is not None:
            self._around[habit.place].recent.pop(model, None)

    def _move(self, model: ModelId, habit: Habit, place: DeviceId | None, now: float) -> None:
        """It lives elsewhere now: turns were counted there."""
        if habit.place is not None:
            self.around(habit.place, now).recent.pop(model, None)
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
            weigh(around, model, now)
            around.turn += 1
            around.last = model
            habit.began.append(now)
        if habit.uses and other:
            habit.gaps.append(now - habit.until)
            habit.turns.append(around.turn - habit.turn)
            around.gaps.append(now - habit.until)
        habit.uses += 1
        habit.turn = around.turn
        _last(around, model, habit)


def _last(around: Neighbourhood, model: ModelId, habit: Habit) -> None:
    """It is the one that was used there last."""
    around.recent.pop(model, None)
    around.recent[model] = habit
    if len(around.recent) > RECENT:
        del around.recent[next(iter(around.recent))]
