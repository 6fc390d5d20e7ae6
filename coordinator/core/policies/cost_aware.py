"""Cost-aware: whoever costs least to be without leaves, in expected seconds of waiting requests.

What leaving costs is the offload that the newcomer waits for, and the restore that the next request waits for, as far
as that request comes before the place would be needed anyway (`reuse`). Both are measured, each way: bytes by bandwidth
and what an operation takes beside them; saved KV is part of the bytes. Frozen requests of a busy resident wait for the
restore as well, each of them. A restore that breaks the model's TTFT objective costs more.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from coordinator.core.policies.reuse import reuse
from coordinator.core.policy import RANK, Resident, Score, Wanted, patience, rank, words

MOST_OBJECTIVE = 8.0


class CostAware(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`horizon`: how far ahead a use still counts, in stays (see `reuse`). `objective`: how much a TTFT objective
    weighs; 0: not at all."""

    horizon: Annotated[float, msgspec.Meta(gt=0, le=100)] = 0.5
    objective: Annotated[float, msgspec.Meta(ge=0, le=100)] = 1.0

    @property
    def name(self) -> str:
        return "cost_aware"

    def score(self, resident: Resident, wanted: Wanted, now: float) -> Score:
        again = self._again(resident, wanted, now)
        seconds = resident.offload_s + self._weight(resident) * resident.restore_s * (again + resident.inside)
        place = rank(resident)
        told = f"costs {seconds * 1000:.0f} ms: restore {resident.restore_s:.2f} s, needed again {again:.0%}"
        return Score(
            place * RANK + seconds, patience(resident, wanted), words(resident, wanted, now, told), place, seconds
        )

    def left(self, resident: Resident, wanted: Wanted, now: float) -> None:
        pass

    def _again(self, resident: Resident, wanted: Wanted, now: float) -> float:
        """From 0 to 1. Of a model that was never used all that is known is how long it has been here."""
        if resident.habit is None or wanted.around is None or not resident.habit.uses:
            return 1.0 / (2.0 + max(0.0, now - resident.active_at))
        return reuse(resident.habit, wanted.around, wanted.residents, now, self.horizon)

    def _weight(self, resident: Resident) -> float:
        objective = resident.settings.ttft_objective
        if objective is None:
            return 1.0
        return 1.0 + self.objective * min(MOST_OBJECTIVE, resident.restore_s / max(objective, 1e-3))
