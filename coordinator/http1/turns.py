"""New requests first: answers go on in turns, and between two turns the loop looks at the network.

Requests come in herds. Where all answers that have come are passed on before the next request is read, those who asked
together ask together again, two herds that meet stay one, and the last of a herd waits for all the others each time.
Where a request is handed on between two answers, a herd becomes a train: its answers come as far apart as it takes to
pass one on, and none waits for another. Nobody waits for a clock: where nothing else has come, the next turn follows at
once. What comes of an answer before its turn goes on with it, together and in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

SHARE: Final = 4
"""Of those that wait, one in so many goes on each time, and at least one: however many requests come meanwhile, the
last of n goes on after some 4 ln(n) looks at the network."""


class Turns:
    """Of one event loop. `soon(call)` has it called once the loop has looked at the network (asyncio's `call_soon`)."""

    def __init__(self, soon: Callable[[Callable[[], None]], object]) -> None:
        self._soon = soon
        self._waiting: deque[Callable[[], None]] = deque()
        self._due = False

    def queue(self, go_on: Callable[[], None]) -> None:
        """Call it in its turn."""
        self._waiting.append(go_on)
        self._again()

    def _some(self) -> None:
        self._due = False
        for _ in range(1 + (len(self._waiting) - 1) // SHARE):
            self._waiting.popleft()()
        if self._waiting:
            self._again()

    def _again(self) -> None:
        if not self._due:
            self._due = True
            self._soon(self._some)
