"""A prefill rank's `Source` on real threads: serving threads ask, the engine's offers, one of its own ends leases."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType

from transfer.kv.messages import Answer, Say
from transfer.kv.source import Released, Source

log = logging.getLogger("vllm.vnpu.transfer")


class Desk:
    """A context manager that stops its thread. `released` hears of each offer's end, outside of any lock, from
    whichever thread ended it: it must not block."""

    def __init__(
        self, source: Source, released: Callable[[Released], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._released = released
        self._clock = clock
        self._moved = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._tick, name="vnpu-kv-desk", daemon=True)
        self._thread.start()

    def __enter__(self) -> Desk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def idle(self) -> bool:
        """Nothing is offered."""
        with self._moved:
            return self._source.idle

    def answer(self, say: Say) -> Answer:
        """For `KvServer`."""
        with self._moved:
            answer, released = self._source.receive(say, self._clock())
            self._moved.notify_all()
        self._tell(released)
        return answer

    def offer(self, request: str, blocks: Iterable[int]) -> None:
        """As `Source.offer`."""
        with self._moved:
            self._source.offer(request, blocks, self._clock())
            self._moved.notify_all()

    def freed(self, blocks: Iterable[int]) -> None:
        """As `Source.freed`; to be called before the blocks are written."""
        with self._moved:
            self._source.freed(blocks)

    def withdraw(self, request: str) -> None:
        """As `Source.withdraw`."""
        self._do(lambda _: self._source.withdraw(request))

    def drain(self, timeout_s: float) -> None:
        """Before sleep: returns when nothing is offered any more, after `timeout_s` at the latest and a moment."""
        self._do(lambda now: self._source.drain(now, now + timeout_s))
        with self._moved:
            self._moved.wait_for(lambda: self._source.idle, timeout_s + 1.0)

    def resume(self) -> None:
        """After waking up."""
        with self._moved:
            self._source.resume(self._clock())
            self._moved.notify_all()

    def close(self) -> None:
        """Idempotent. What is still offered is not released: the process ends, or the engine knows."""
        with self._moved:
            self._stopped = True
            self._moved.notify_all()
        self._thread.join(5.0)

    def _do(self, event: Callable[[float], list[Released]]) -> None:
        with self._moved:
            released = event(self._clock())
            self._moved.notify_all()
        self._tell(released)

    def _tell(self, released: list[Released]) -> None:
        for one in released:
            log.info("kv offer %s: %s", one.request, one.outcome)
            self._released(one)

    def _tick(self) -> None:
        while True:
            with self._moved:
                due = self._source.due
                if self._stopped:
                    return
                if due is None or due > self._clock():
                    self._moved.wait(None if due is None else due - self._clock())
                    continue
                released = self._source.tick(self._clock())
                self._moved.notify_all()
            self._tell(released)
