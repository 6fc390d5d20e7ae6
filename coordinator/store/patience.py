"""`asyncio.timeout` for one short wait after another, without a timer for each of them."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Patience:
    """`with patience:` around a wait: TimeoutError where it takes longer than `seconds` (None: any time is right).

    There is one timer. Whoever waits anew leaves it as it is: when it fires it looks since when is waited now, and is
    set again to when that will have taken too long. One wait at a time; `close` it when no more comes.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        """Who waits now."""
        self._due = 0.0
        self._cancelling = 0
        self._expired = False

    def __enter__(self) -> None:
        if self._seconds is None:
            return
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can be told that it has waited for too long")
        self._task, self._cancelling = task, task.cancelling()
        self._due = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._look)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if not self._expired or task is None:
            return
        self._expired = False
        if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._task is None:
            return
        if self._loop.time() < self._due:
            self._timer = self._loop.call_at(self._due, self._look)
            return
        self._expired = True
        self._task.cancel()
