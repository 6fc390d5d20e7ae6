"""What the workers have told about restores that went on behind their answers, until the agent collects it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from engine_patch.report import Report


class Postbox:
    """Lives on the agent's loop; filled from its desk (`engine_patch.desk.Settled`)."""

    def __init__(self) -> None:
        self._reports: dict[tuple[int, int], Report] = {}
        self._news = asyncio.Event()

    def put(self, one: Report) -> None:
        self._reports[one.rank, one.turn] = one
        self._news.set()

    async def collect(self, ranks: Collection[int], turn: int) -> tuple[Report, ...]:
        """The reports of these ranks about restore number `turn`, once all are there. The caller sets a deadline."""
        wanted = {(rank, turn) for rank in ranks}
        while not wanted <= self._reports.keys() and self._failure(turn) is None:
            self._news.clear()
            await self._news.wait()
        failure = self._failure(turn)
        found = tuple(self._reports[key] for key in sorted(wanted) if key in self._reports)
        self._reports.clear()
        return (failure,) if failure else found

    def _failure(self, turn: int) -> Report | None:
        """One rank's error is everybody's: the others may wait for it in vain, in the same forward pass."""
        return next((one for one in self._reports.values() if one.turn == turn and one.error), None)
