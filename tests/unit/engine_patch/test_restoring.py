"""Gates open in order, after bytes and canary, or never."""

from __future__ import annotations

import threading

import pytest

from engine_patch import restoring
from engine_patch.restoring import Cancelled, MemoryFault, Restoring

PATIENCE_S = 30.0
STAGES = [[(0, 0, 1), (1, 1, 1)], [], [(2, 2, 1)]]


class Job:
    """A copy that the test moves on."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, int, int]] = []
        self.cancelled = False
        self.bytes_total = 3
        self.seconds = 0.5
        self._there = 0
        self._moved = threading.Condition()

    def start(self, entries: object) -> Job:
        self.entries = list(entries)  # type: ignore[call-overload]
        return self

    def copied(self, entries: int) -> None:
        with self._moved:
            self._there = entries
            self._moved.notify_all()

    def wait(self, entries: int | None = None, timeout_s: float = 3600.0) -> bool:
        wanted = len(self.entries) if entries is None else entries
        with self._moved:
            self._moved.wait_for(lambda: self._there >= wanted or self.cancelled, timeout_s)
            return self._there >= wanted

    def cancel(self) -> None:
        with self._moved:
            self.cancelled = True
            self._moved.notify_all()


class Sample:
    """Notes what was checked; the stages in `wrong` came back wrong."""

    def __init__(self, *wrong: int) -> None:
        self.seen: list[int] = []
        self.wrong = wrong

    def __call__(self, stage: int) -> None:
        self.seen.append(stage)
        if stage in self.wrong:
            raise MemoryFault(f"stage {stage}")


def test_a_gate_opens_when_its_stage_and_all_before_are_there_and_checked():
    job, check = Job(), Sample()
    under_way = Restoring(job.start, STAGES, check)
    assert job.entries == [(0, 0, 1), (1, 1, 1), (2, 2, 1)]
    job.copied(2)
    under_way.await_stage(1)
    assert (check.seen, under_way.done) == ([0, 1], False)
    job.copied(3)
    under_way.finish()
    under_way.await_stage(2)
    assert (check.seen, under_way.done) == ([0, 1, 2], True)


def test_who_waits_gets_through_when_the_bytes_come():
    job, check, through = Job(), Sample(), threading.Event()
    under_way = Restoring(job.start, STAGES, check)
    job.copied(1)

    def layer() -> None:
        under_way.await_stage(0)
        through.set()

    thread = threading.Thread(target=layer)
    thread.start()
    assert check.seen == []
    job.copied(2)
    assert through.wait(PATIENCE_S)
    thread.join(PATIENCE_S)


def test_what_came_back_wrong_shuts_this_gate_and_all_behind_it_for_good():
    job, check = Job(), Sample(1)
    under_way = Restoring(job.start, STAGES, check)
    job.copied(3)
    under_way.await_stage(0)
    for stage in (1, 2, 1):
        with pytest.raises(MemoryFault, match="stage 1"):
            under_way.await_stage(stage)
    with pytest.raises(MemoryFault, match="stage 1"):
        under_way.finish()
    assert (check.seen, under_way.done) == ([0, 1], False)


def test_a_copy_that_does_not_end_is_a_fault(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(restoring, "LIMIT_S", 0.0)
    under_way = Restoring(Job().start, STAGES, Sample())
    with pytest.raises(MemoryFault, match="did not end"):
        under_way.await_stage(0)


def test_what_was_taken_back_says_so():
    under_way = Restoring(Job().start, STAGES, Sample())
    under_way.cancel()
    with pytest.raises(Cancelled):
        under_way.finish()


def test_a_copy_that_ended_all_the_same_opens_no_gate_after_a_cancel() -> None:
    """A device finishes what it was given: nobody must look at pages that are about to go."""
    job, sample = Job(), Sample()
    restoring = Restoring(job.start, STAGES, sample)
    job.copied(2)
    restoring.await_stage(0)
    restoring.cancel()
    job.copied(3)
    with pytest.raises(Cancelled):
        restoring.finish()
    assert sample.seen == [0]
