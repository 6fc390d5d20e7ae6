"""What `vnpu-watch` remembers between two looks: last wakes, what was shown, what has happened."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from coordinator.cli.happenings import Happening, happened
from coordinator.cli.view import View, Wake, build, doubt, remember
from coordinator.core.model import Decision
from coordinator.errors import VnpuError
from coordinator.picture import Mirror, Picture
from coordinator.store.access import credentials_apart

ANSWER_S = 10.0
CLOCK_S = 1.0
KEPT = 200


class Watcher:
    """A mirror with a memory."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._wakes: dict[str, Wake] = {}
        self._shown: View | None = None
        self._drawn_from = (-1, "")
        self._decided = -1
        self.happenings: deque[Happening] = deque(maxlen=KEPT)
        self.happened = 0
        """How many there ever were."""

    async def first_answer(self, urls: Sequence[str]) -> None:
        """Raises VnpuError where etcd does not answer within 10 s."""
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._mirror.until(lambda picture: True)
        except TimeoutError:
            remedy = "is the node running? name another: --etcd URL"
            shown = ", ".join(credentials_apart(urls)[0])
            raise VnpuError(f"etcd at {shown} does not answer", remedy=remedy) from None

    @property
    def picture(self) -> Picture:
        return self._mirror.picture

    def view(self) -> View:
        """What there is to show now; the same object as before where nothing has changed, whatever it holds."""
        heard, picture = self._mirror.heard, self._mirror.picture
        silent_s = None if heard is None else time.monotonic() - heard
        drawn_from = (picture.edition, doubt(picture, silent_s))
        if self._shown is not None and drawn_from == self._drawn_from:
            return self._shown
        self._drawn_from = drawn_from
        self._wakes = remember(self._wakes, picture)
        view = build(picture, self._wakes, silent_s)
        if self._shown is None:
            self._decided = max((each.n for each in self.picture.of(Decision).values()), default=-1)
        elif view != self._shown:
            self._note(self._shown, view)
        self._shown = view
        return view

    async def news(self) -> None:
        """Returns when there is something else to show; a heartbeat is nothing else, silence is."""
        shown = self._shown
        while self.view() == shown:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOCK_S):
                    await self._mirror.changed()

    def latest(self, count: int) -> list[Decision]:
        """The newest decisions that stand in etcd, oldest first."""
        decided = sorted(self.picture.of(Decision).values(), key=lambda each: each.n)
        return decided[-count:]

    def _note(self, before: View, after: View) -> None:
        decided = self.latest(KEPT)
        new = [each for each in decided if each.n > self._decided]
        self._decided = max([self._decided, *(each.n for each in decided)])
        found = happened(before, after, new, time.time())
        self.happened += len(found)
        self.happenings.extend(found)
