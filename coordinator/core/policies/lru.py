"""Least recently used: the longest unused leaves first, however large and however often it comes back."""

from __future__ import annotations

import msgspec

from coordinator.core.policy import RANK, Resident, Score, Wanted, patience, rank, words


class LeastRecentlyUsed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Idle before busy, low priority before high, longest unused first, never below minimum residency."""

    @property
    def name(self) -> str:
        return "lru"

    def score(self, resident: Resident, wanted: Wanted, now: float) -> Score:
        place = rank(resident)
        idle = max(0.0, now - resident.active_at)
        return Score(place * RANK - idle, patience(resident, wanted), words(resident, wanted, now), place)

    def left(self, resident: Resident, wanted: Wanted, now: float) -> None:
        pass
