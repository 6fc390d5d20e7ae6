"""Requests that wait for their model: a bounded first-in-first-out queue per model, woken by routes.

A place is held by a `with` block, so a client that leaves (its handler is cancelled) frees it at once. How many wait
is the model's demand and is told to `on_change` after every change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from coordinator.gateway.problem import Problem, queue_full

OnChange = Callable[[str, int], None]


class Place:
    """One request's place in its model's queue."""

    def __init__(self, model: str) -> None:
        self.model = model
        self._turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._refusal: Problem | None = None

    def call(self) -> None:
        """Its model can be served, or may be: look again."""
        if not self._turn.done():
            self._turn.set_result(None)

    def refuse(self, problem: Problem) -> None:
        """For good, also where it was called a moment ago and has not looked yet: nobody would call it again."""
        self._refusal = problem
        self.call()

    async def wait(self, timeout_s: float) -> bool:
        """Whether it was called within `timeout_s`; may be waited on again after either. Raises the Problem it was
        refused with."""
        done, _ = await asyncio.wait((self._turn,), timeout=max(0.0, timeout_s))
        if self._refusal is not None:
            raise self._refusal
        if not done:
            return False
        self._turn = asyncio.get_running_loop().create_future()
        return True

    def discard(self) -> None:
        self._turn.cancel()


class WaitingRoom:
    """All queues of one gateway; each holds at most `max_queue` requests."""

    def __init__(self, max_queue: int, on_change: OnChange) -> None:
        self._max_queue = max_queue
        self._on_change = on_change
        self._queues: dict[str, dict[Place, None]] = {}

    def resize(self, max_queue: int) -> None:
        """From now on; who waits already keeps the place."""
        self._max_queue = max_queue

    @contextmanager
    def place(self, model: str) -> Iterator[Place]:
        """A place at the end of `model`'s queue, until the block ends. Raises Problem (503) when the queue is full."""
        queue = self._queues.setdefault(model, {})
        if len(queue) >= self._max_queue:
            raise queue_full(model, self._max_queue)
        place = Place(model)
        queue[place] = None
        self._on_change(model, len(queue))
        try:
            yield place
        finally:
            self._leave(place)

    def _leave(self, place: Place) -> None:
        place.discard()
        queue = self._queues.get(place.model, {})
        if place not in queue:  # it was refused
            return
        del queue[place]
        if not queue:
            del self._queues[place.model]
        self._on_change(place.model, len(queue))

    def call(self, model: str) -> None:
        """Everyone who waits for `model` looks at the routes again, in order of arrival."""
        for place in tuple(self._queues.get(model, ())):
            place.call()

    def refuse(self, model: str, problem: Callable[[], Problem]) -> None:
        """Everyone who waits for `model` is answered with a problem of their own, and waits no more from now on: who
        comes before they have gone is new demand."""
        refused = self._queues.pop(model, {})
        for place in refused:
            place.refuse(problem())
        if refused:
            self._on_change(model, 0)

    def refuse_all(self, problem: Callable[[], Problem]) -> None:
        for model in tuple(self._queues):
            self.refuse(model, problem)

    def waiting(self, model: str) -> int:
        return len(self._queues.get(model, ()))

    @property
    def demand(self) -> dict[str, int]:
        """Requests that wait now, by model."""
        return {model: len(queue) for model, queue in self._queues.items()}
