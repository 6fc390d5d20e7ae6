"""How the threads that carry broadcasts are made."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from engine_patch.sharded_linear import group
from engine_patch.sharded_linear.group import Line, in_the_background


def policy_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0)))
    thread.start()
    thread.join()
    return found[0]


def test_threads_made_meanwhile_preempt_nobody_and_later_ones_are_as_before() -> None:
    with in_the_background():
        assert policy_of_a_new_thread() == os.SCHED_BATCH
    assert policy_of_a_new_thread() == os.sched_getscheduler(0) == os.SCHED_OTHER
    with pytest.raises(ValueError, match="no group"), in_the_background():
        raise ValueError("no group")
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_series_has_its_broadcasts_carried_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what ranks say to one another, which a wake waits for, is not."""
    made: list[int] = []
    monkeypatch.setattr(group, "_new_group", lambda ranks, timeout_s: made.append(policy_of_a_new_thread()))
    Line([0, 1], 1.0)
    group.Group([0, 1], 0, 1.0)
    assert made == [os.SCHED_BATCH, os.SCHED_OTHER]


def test_who_has_a_policy_of_his_own_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(os, "sched_getscheduler", lambda who: os.SCHED_RR)
    monkeypatch.setattr(os, "sched_setscheduler", lambda who, policy, param: told.append(policy))
    with in_the_background():
        pass
    assert told == []


@pytest.mark.parametrize("error", [errno.EPERM, errno.EINVAL])
def test_a_sandbox_that_refuses_changes_nothing(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def refuse(*of: object) -> None:
        raise OSError(error, "refused")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with in_the_background():
        assert policy_of_a_new_thread() == os.SCHED_OTHER
