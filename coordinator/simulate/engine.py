"""One simulated engine: prompts one after the other, then all that decode together, frozen while it is away.

The model of service is simple on purpose: what is compared are decisions about memory. A request's first token comes
when its prompt is through; TTFT is counted from its arrival at the gateway.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import msgspec

from coordinator.simulate.clock import Clock
from coordinator.simulate.fleet import Model
from coordinator.simulate.trace import Request


class Job(msgspec.Struct):
    """One request's life. `cold`: its model was not resident when it came. `left`: seconds still to work for it."""

    request: Request
    cold: bool
    order: int
    left: float = 0.0
    due: float = 0.0
    ttft: float | None = None
    ended: float | None = None
    refused: str = ""


class Engine:
    """`idle` is told when the last request is done."""

    def __init__(self, clock: Clock, model: Model, idle: Callable[[], None], first: Callable[[Job], None]) -> None:
        self._clock = clock
        self._model = model
        self._idle = idle
        self._first = first
        self._prompts: list[Job] = []
        self._decoding: list[Job] = []
        self._life = 0
        self.resident = False

    @property
    def inside(self) -> int:
        return len(self._prompts) + len(self._decoding)

    @property
    def oldest(self) -> float:
        """When the first of those inside came; infinity: there is none."""
        return min((job.request.t for job in (*self._prompts, *self._decoding)), default=inf)

    def admit(self, job: Job) -> None:
        job.left = self._model.first + job.request.prompt_tokens / self._model.prefill
        self._prompts.append(job)
        if self.resident and len(self._prompts) == 1:
            self._prefill()

    def resume(self) -> None:
        """Resident again: everything goes on where it stood."""
        self.resident = True
        for job in tuple(self._decoding):
            self._decode(job)
        if self._prompts:
            self._prefill()

    def freeze(self) -> None:
        """It must leave: what was done stays done."""
        self.resident = False
        self._life += 1
        for job in (*self._prompts[:1], *self._decoding):
            job.left = max(0.0, job.due - self._clock.now)

    def _work(self, job: Job, done: Callable[[Job], None]) -> None:
        life = self._life
        job.due = self._clock.now + job.left

        def over() -> None:
            if life == self._life:
                done(job)

        self._clock.at(job.due, over)

    def _prefill(self) -> None:
        self._work(self._prompts[0], self._prefilled)

    def _prefilled(self, job: Job) -> None:
        self._prompts.remove(job)
        job.ttft = self._clock.now - job.request.t
        self._first(job)
        job.left = job.request.output_tokens * self._model.decode
        self._decoding.append(job)
        self._decode(job)
        if self._prompts:
            self._prefill()

    def _decode(self, job: Job) -> None:
        self._work(job, self._done)

    def _done(self, job: Job) -> None:
        self._decoding.remove(job)
        job.ended = self._clock.now
        if not self.inside:
            self._idle()
