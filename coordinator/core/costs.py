"""What moving an engine takes, each way, by what was measured: bytes by bandwidth, and what an operation takes beside.

An engine says in its residency how long each step of its last operation took and how many bytes it moved. What it waits
for before it moves anything (`drain`, `enter`) is not the move's. A restore that found most of its weights where it had
left them tells what it takes beside its bytes, and of bandwidth nothing.
"""

from __future__ import annotations

import msgspec

from coordinator.core.model import EngineId, Order, Residency

GUESSED_BANDWIDTH = 10e9
"""Bytes a second, until something was measured."""
NEWEST = 0.5
"""How much the newest measurement counts against all before it."""
WHOLE = 2
"""What moved one in so many of its bytes at least is taken to be about its bytes."""
_WAITING = frozenset({"drain", "enter"})


class _Measured(msgspec.Struct):
    """Seconds of this engine's moves, and the bytes that were moved."""

    seconds: float
    bytes: int


class Costs:
    """Seconds of restore and offload by engine; of one that was never measured, by the others' bandwidth."""

    def __init__(self) -> None:
        self._measured: dict[tuple[EngineId, Order], _Measured] = {}
        self._bandwidth: dict[Order, float] = {}

    def learn(self, engine: EngineId, order: Order, residency: Residency) -> None:
        """`residency` answers `order`. Where weights were joined, and not copied, nothing is learnt about copies."""
        if order is Order.RESTORE and residency.joined:
            return
        seconds = sum(step.seconds for step in residency.steps if step.name not in _WAITING)
        moved = residency.restored if order is Order.RESTORE else residency.kv_saved + residency.d2h
        if seconds <= 0:
            return
        if moved and WHOLE * moved >= residency.held.weights + residency.held.kv:
            known = self._bandwidth.get(order, moved / seconds)
            self._bandwidth[order] = NEWEST * moved / seconds + (1 - NEWEST) * known
        before = self._measured.get((engine, order))
        if before is not None and before.bytes == moved:
            seconds = NEWEST * seconds + (1 - NEWEST) * before.seconds
        self._measured[engine, order] = _Measured(seconds, moved)

    def restore_s(self, engine: EngineId, bytes_: int) -> float:
        """Of `bytes_` on all its devices together."""
        return self._of(engine, Order.RESTORE, bytes_)

    def offload_s(self, engine: EngineId) -> float:
        """0 until it was measured: clean weights cost nothing to leave behind."""
        found = self._measured.get((engine, Order.OFFLOAD))
        return found.seconds if found is not None else 0.0

    def forget(self, engine: EngineId) -> None:
        for order in (Order.RESTORE, Order.OFFLOAD):
            self._measured.pop((engine, order), None)

    def _of(self, engine: EngineId, order: Order, bytes_: int) -> float:
        found = self._measured.get((engine, order))
        if found is None:
            return bytes_ / self._bandwidth.get(order, GUESSED_BANDWIDTH)
        if WHOLE * found.bytes >= bytes_:
            return found.seconds * bytes_ / found.bytes if found.bytes else found.seconds
        return found.seconds + (bytes_ - found.bytes) / self._bandwidth.get(order, GUESSED_BANDWIDTH)
