"""Landlord (Young, SODA 1998; GreedyDual-Size, Cao and Irani 1997): competitive without knowing anything of the future.

Every resident has credit: what its restore costs, a byte. Whoever needs room makes all pay rent by the byte until one
is without credit; it leaves. A use fills the credit again. So large and cheap ones leave before small and dear ones,
and nobody stays for ever on one expensive restore.
"""

from __future__ import annotations

import msgspec

from coordinator.core.model import DeviceId, ModelId
from coordinator.core.policy import RANK, Resident, Score, Wanted, patience, rank, words

GB = 1e9


class _Account(msgspec.Struct):
    """`rent` had been paid by all when the model was last used, at `used`."""

    rent: float
    used: float


class Landlord:
    """Its memory is what rent has been charged by device, in seconds a gigabyte, and at each model's last use."""

    def __init__(self) -> None:
        self._rent: dict[DeviceId, float] = {}
        self._accounts: dict[ModelId, _Account] = {}

    @property
    def name(self) -> str:
        return "landlord"

    def score(self, resident: Resident, wanted: Wanted, now: float) -> Score:
        place = rank(resident)
        credit = self._level(resident, wanted) - self._charged(wanted)
        told = words(resident, wanted, now, f"credit {max(0.0, credit) * 1000:.0f} ms a GB")
        return Score(place * RANK + credit, patience(resident, wanted), told, place)

    def left(self, resident: Resident, wanted: Wanted, now: float) -> None:
        """The rent rises to what made it leave."""
        if wanted.around is not None:
            self._rent[wanted.around.device] = max(self._charged(wanted), self._level(resident, wanted))
        self._accounts.pop(resident.model, None)

    def _charged(self, wanted: Wanted) -> float:
        return self._rent.get(wanted.around.device, 0.0) if wanted.around is not None else 0.0

    def _level(self, resident: Resident, wanted: Wanted) -> float:
        """Rent at which its credit is used up."""
        used = resident.habit.until if resident.habit is not None else resident.active_at
        account = self._accounts.get(resident.model)
        if account is None or account.used != used:
            account = self._accounts[resident.model] = _Account(self._charged(wanted), used)
        return account.rent + (resident.restore_s + resident.offload_s) * GB / max(1, resident.bytes)
