"""Which resident leaves when memory is needed: what a policy is told and what it answers.

A policy scores; it never decides. The scheduler looks for the room (`core.room`), takes nobody in vain, and holds the
protocol's rules itself, so a policy can be wrong about cost but never about safety. `core.policies` holds those there
are; a new one is a file there and a line in its `registry`.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from coordinator.core.habits import Habit, Neighbourhood
from coordinator.core.model import EngineId, ModelId
from coordinator.core.settings import Settings

RANK = 1e7
"""A rank counts as so much in a score that people see: more than any idle time or cost in seconds."""
BUSY = 10_000
"""Ranks by which a busy resident stands above every idle one: more than any priority."""


class Resident(msgspec.Struct, frozen=True):
    """An engine whose pages could be taken. Times are monotonic seconds; `bytes` are its pages on all its devices.

    `restore_s`, `offload_s`: what moving it takes, each way, by what was measured. `inside`: requests that it holds or
    runs, and that wait for it. `habit`: when its model was used; None: not known here."""

    engine: EngineId
    model: ModelId
    settings: Settings
    bytes: int
    busy: bool
    resident_since: float
    active_at: float
    """When it last had work; now, while it has some."""
    restore_s: float = 0.0
    offload_s: float = 0.0
    inside: int = 0
    habit: Habit | None = None
    unasked: bool = False
    """It was woken by prediction and was not used since."""


class Wanted(msgspec.Struct, frozen=True):
    """Who needs room: `since` is when it began to wait; `around`: the pace of the device it
    needs, `residents`: how many are there."""

    engine: EngineId
    model: ModelId
    settings: Settings
    since: float
    around: Neighbourhood | None = None
    residents: int = 1


class Score(msgspec.Struct, frozen=True):
    """`value`: the lowest leaves first. `not_before`: monotonic time from which it may leave; `why` in words.

    `rank`: nobody of a higher rank leaves while those of lower ranks make the room. `seconds`: what its leaving is
    expected to cost, where the policy knows; such scores add up, and the cheapest set leaves, not the lowest first."""

    value: float
    not_before: float
    why: str
    rank: int = 0
    seconds: float | None = None


class EvictionPolicy(Protocol):
    """Scores a resident for a newcomer.

    `score` must be pure: between two `left`, the same arguments give the same score. `not_before` must not lie beyond
    what both `resident.resident_since` and `wanted.since` plus a constant allow: the scheduler's bound on waiting (see
    `Scheduler`) rests on it; `patience` obeys that. Pinned models are never asked about."""

    @property
    def name(self) -> str: ...

    def score(self, resident: Resident, wanted: Wanted, now: float) -> Score: ...

    def left(self, resident: Resident, wanted: Wanted, now: float) -> None:
        """`resident` was ordered to leave for `wanted`: for policies with a memory of their own."""


def patience(resident: Resident, wanted: Wanted) -> float:
    """From when `resident` may leave: after its minimum residency (none, if nobody wanted it); a busy one also not
    before the newcomer has waited as long. So two models that are always busy and do not fit together take turns, and
    each turn serves all that wait for it: A B A B A becomes A A A B B (mostlygeek/llama-swap#612)."""
    least = 0.0 if resident.unasked else resident.settings.min_residency
    not_before = resident.resident_since + least
    return max(not_before, wanted.since + least) if resident.busy else not_before


def rank(resident: Resident) -> int:
    """Idle before busy, low priority before high."""
    return resident.settings.priority + (BUSY if resident.busy else 0)


def words(resident: Resident, wanted: Wanted, now: float, *more: str) -> str:
    """How people are told: how busy, priority, then `more`, and how long it stays in any case."""
    told = ["busy" if resident.busy else f"idle for {max(0.0, now - resident.active_at):.1f} s"]
    if resident.settings.priority:
        told.append(f"priority {resident.settings.priority}")
    left = patience(resident, wanted) - now
    return ", ".join([*told, *more, *([f"stays {left:.1f} s more"] if left > 0 else [])])
