"""Which resident leaves when memory is needed: a pure, silent, replaceable choice.

A policy scores; it never decides. The scheduler takes the lowest scores until the newcomer fits, drops whom it does not
need, and holds the protocol's rules itself, so a policy can be wrong about cost but never about safety.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from coordinator.core.model import EngineId, ModelId
from coordinator.core.settings import Settings


class Resident(msgspec.Struct, frozen=True):
    """An engine whose pages could be taken. Times are monotonic seconds; `bytes` are its pages on all its devices."""

    engine: EngineId
    model: ModelId
    settings: Settings
    bytes: int
    busy: bool
    resident_since: float
    active_at: float
    """When it last had work; now, while it has some."""


class Wanted(msgspec.Struct, frozen=True):
    """Who needs room: `since` is when it began to wait."""

    engine: EngineId
    model: ModelId
    settings: Settings
    since: float


class Score(msgspec.Struct, frozen=True):
    """`value`: the lowest leaves first. `not_before`: monotonic time from which it may leave; `why` in words."""

    value: float
    not_before: float
    why: str


class EvictionPolicy(Protocol):
    """Scores a resident for a newcomer. Must be pure: the same arguments give the same score, at any time.

    `not_before` must not lie beyond what both `resident.resident_since` and `wanted.since` plus a constant allow:
    the scheduler's bound on waiting (see `Scheduler`) rests on it. Pinned models are never asked about."""

    @property
    def name(self) -> str: ...

    def score(self, resident: Resident, wanted: Wanted, now: float) -> Score: ...


class LeastRecentlyUsed:
    """Idle before busy, low priority before high, longest unused first, never below minimum residency.

    A busy resident may be taken, with its requests kept, by whoever has waited for its minimum residency: so two models
    that are always busy and do not fit together take turns instead of thrashing (mostlygeek/llama-swap#612)."""

    name = "least-recently-used"
    _BUSY = 1e11
    _PRIORITY = 1e7

    def score(self, resident: Resident, wanted: Wanted, now: float) -> Score:
        least = resident.settings.min_residency
        not_before = resident.resident_since + least
        if resident.busy:
            not_before = max(not_before, wanted.since + least)
        idle = max(0.0, now - resident.active_at)
        value = resident.settings.priority * self._PRIORITY - idle + (self._BUSY if resident.busy else 0.0)
        return Score(value, not_before, self._words(resident, idle, not_before - now))

    def _words(self, resident: Resident, idle: float, left: float) -> str:
        words = "busy" if resident.busy else f"idle for {idle:.1f} s"
        if resident.settings.priority:
            words += f", priority {resident.settings.priority}"
        return words + (f", stays {left:.1f} s more" if left > 0 else "")
