"""Who leaves, of those who may: enough to make the room, nobody in vain.

By order: the lowest scores first, until it is enough; then those who turn out not to be needed stay. By cost, where a
policy knows it: of all sets in which everyone is needed, the one that costs least, where memory that is freed beyond
the need is worth `SPARE` of what memory holds on average (the next newcomer finds it). Ranks go before cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from coordinator.core.model import DeviceId
from coordinator.core.victims import Victim

SPARE = 0.5
MOST_EXACT = 10
"""Up to so many candidates every set is looked at; beyond, the cheapest byte goes first."""

Missing = Mapping[DeviceId, int]
"""Bytes that must be freed, by device; not positive: nothing."""


def choose(missing: Missing, ready: Sequence[Victim]) -> tuple[Victim, ...] | None:
    """Of `ready`, in order of score; None: all together they do not make the room."""
    useful = [victim for victim in ready if any(missing.get(device, 0) > 0 for device in victim.bytes)]
    if not _enough(missing, useful):
        return None
    if any(victim.seconds is None for victim in useful):
        return in_order(missing, useful)
    useful = _lowest_ranks(missing, useful)
    return _cheapest(missing, useful) if len(useful) <= MOST_EXACT else in_order(missing, _by_density(useful))


def in_order(missing: Missing, free: Sequence[Victim]) -> tuple[Victim, ...] | None:
    """The first of `free` that make enough room on every device, without those that turn out not to be needed."""
    chosen: list[Victim] = []
    for victim in free:
        left = _left(missing, chosen)
        if not left:
            break
        if left & victim.bytes.keys():
            chosen.append(victim)
    if _left(missing, chosen):
        return None
    for victim in reversed(tuple(chosen)):
        without = [other for other in chosen if other is not victim]
        if not _left(missing, without):
            chosen = without
    return tuple(chosen)


def _lowest_ranks(missing: Missing, useful: Sequence[Victim]) -> list[Victim]:
    """Without those of ranks that need not be touched."""
    for rank in sorted({victim.rank for victim in useful}):
        low = [victim for victim in useful if victim.rank <= rank]
        if _enough(missing, low):
            return low
    return list(useful)


def _cheapest(missing: Missing, useful: Sequence[Victim]) -> tuple[Victim, ...]:
    credit = SPARE * sum(_seconds(victim) for victim in useful) / max(1, sum(_size(victim) for victim in useful))
    need = sum(max(0, bytes_) for bytes_ in missing.values())
    best: tuple[float, tuple[Victim, ...]] | None = None
    for count in range(1, len(useful) + 1):
        for chosen in combinations(useful, count):
            if not _enough(missing, chosen) or _somebody_in_vain(missing, chosen):
                continue
            spare = sum(_size(victim) for victim in chosen) - need
            cost = sum(_seconds(victim) for victim in chosen) - credit * spare
            if best is None or cost < best[0]:
                best = cost, chosen
    return best[1] if best is not None else ()


def _somebody_in_vain(missing: Missing, chosen: tuple[Victim, ...]) -> bool:
    return any(_enough(missing, [other for other in chosen if other is not victim]) for victim in chosen)


def _by_density(useful: Sequence[Victim]) -> list[Victim]:
    return sorted(useful, key=lambda v: (v.rank, _seconds(v) / max(1, _size(v)), v.holder))


def _enough(missing: Missing, chosen: Sequence[Victim]) -> bool:
    return not _left(missing, chosen)


def _left(missing: Missing, chosen: Sequence[Victim]) -> set[DeviceId]:
    """Devices on which room is still missing."""
    return {d for d, bytes_ in missing.items() if bytes_ > 0 and bytes_ > sum(v.bytes.get(d, 0) for v in chosen)}


def _seconds(victim: Victim) -> float:
    return victim.seconds or 0.0


def _size(victim: Victim) -> int:
    return sum(victim.bytes.values())
