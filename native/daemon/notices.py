"""What the daemon asks of processes, each numbered, until they have heard it. PURE."""

from __future__ import annotations

from native.protocol import News

MOST = 4096
"""Asked of one process and unheard: beyond that the oldest are dropped (whoever ignores them is killed anyway)."""
_BITS = 32


class Notices:
    """Numbers grow over restarts of the daemon: its `generation` is in their upper bits."""

    def __init__(self, generation: int) -> None:
        self._last = (generation % (1 << (62 - _BITS))) << _BITS
        self._asked: dict[int, list[tuple[int, int | str]]] = {}

    def let_go(self, process: int, view: int) -> None:
        self._ask(process, view)

    def spare(self, process: int, digest: str) -> None:
        self._ask(process, digest)

    def _ask(self, process: int, what: int | str) -> None:
        self._last += 1
        asked = [one for one in self._asked.get(process, []) if one[1] != what]
        self._asked[process] = [*asked, (self._last, what)][-MOST:]

    def news(self, process: int, after: int) -> News | None:
        """What this process has not heard yet; what it has heard is forgotten. None: nothing."""
        asked = [one for one in self._asked.get(process, []) if one[0] > after]
        self._asked[process] = asked
        if not asked:
            del self._asked[process]
            return None
        return News(
            asked[-1][0],
            tuple(what for _, what in asked if isinstance(what, int)),
            tuple(what for _, what in asked if isinstance(what, str)),
        )

    def forget(self, process: int) -> None:
        """It is dead."""
        self._asked.pop(process, None)
