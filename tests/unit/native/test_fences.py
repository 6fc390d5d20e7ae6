"""The fence of one device, rule by rule of PROTOCOL."""

from __future__ import annotations

import msgspec
import pytest

from native.fences import (
    OFFLOAD,
    RECLAIM,
    RESTORE,
    Accept,
    Fences,
    Holder,
    Kill,
    Open,
    Record,
    Refuse,
    Seat,
    Token,
    Verdict,
    View,
    Wait,
)
from native.protocol import Code

A, B = Holder("a", "1"), Holder("b", "1")
A_AGAIN = Holder("a", "2")
EPOCH = "e1"


def seen(revision: int, holder: Holder = A, *, token: bool = True, order: str = RESTORE, epoch: str = EPOCH) -> View:
    """A grant of `revision`, with its token standing or gone."""
    seat = Seat(holder, revision, order, 100, 60.0)
    return View(epoch, revision, seat, Token(holder, revision) if token else None)


def fences(*views: View, record: Record | None = None) -> Fences:
    """In agreement, in the epoch, after these views."""
    machine = Fences(record or Record(epoch=EPOCH))
    machine.agree()
    for view in views:
        machine.observe(view)
    return machine


def living(*holders: Holder):  # type: ignore[no-untyped-def]
    return lambda holder: holder in holders


def code(verdict: Verdict) -> Code:
    assert isinstance(verdict, Refuse), verdict
    return verdict.code


def test_the_token_of_the_view_is_accepted_with_its_grant() -> None:
    machine = fences(seen(7))
    assert machine.enter(A, EPOCH, 7, 0.0) == Accept(Open(A, 7, RESTORE, 100, 60.0))
    assert machine.record.open == Open(A, 7, RESTORE, 100, 60.0)


def test_a_view_below_the_fence_waits() -> None:
    machine = fences(seen(5, B, token=False))
    assert isinstance(machine.enter(A, EPOCH, 7, 0.0), Wait)
    machine.observe(seen(7))
    assert isinstance(machine.enter(A, EPOCH, 7, 0.0), Accept)


def test_before_the_first_listing_everybody_waits() -> None:
    assert isinstance(fences().enter(A, EPOCH, 7, 0.0), Wait)


@pytest.mark.parametrize(
    ("view", "holder", "epoch", "revision"),
    [
        pytest.param(seen(7, token=False), A, EPOCH, 7, id="token gone"),
        pytest.param(seen(9), A, EPOCH, 7, id="token replaced by a newer one of the same holder"),
        pytest.param(seen(9, B), A, EPOCH, 7, id="token replaced by another's"),
        pytest.param(seen(7, B), A, EPOCH, 7, id="another's token"),
        pytest.param(seen(7), A_AGAIN, EPOCH, 7, id="another start of the same engine"),
        pytest.param(seen(7), A, "e0", 7, id="another epoch"),
        pytest.param(View("", 7), A, EPOCH, 7, id="no epoch"),
        pytest.param(View(EPOCH, 7), A, EPOCH, 7, id="nothing granted"),
    ],
)
def test_what_is_not_the_token_is_stale(view: View, holder: Holder, epoch: str, revision: int) -> None:
    machine = fences(view)
    assert code(machine.enter(holder, epoch, revision, 0.0)) is Code.STALE
    assert machine.record.open is None


def test_what_is_closed_is_stale_though_its_token_stands() -> None:
    machine = fences(seen(7))
    machine.enter(A, EPOCH, 7, 0.0)
    assert machine.leave(A, EPOCH, 7) is None
    assert code(machine.enter(A, EPOCH, 7, 0.0)) is Code.STALE


def test_entering_again_what_is_open_is_accepted_even_when_the_token_vanished() -> None:
    """The first answer may have been lost, and an entered operation runs on (rule 7)."""
    machine = fences(seen(7))
    machine.enter(A, EPOCH, 7, 0.0)
    machine.observe(seen(7, token=False))
    assert isinstance(machine.enter(A, EPOCH, 7, 0.0), Accept)
    assert code(machine.enter(B, EPOCH, 7, 0.0)) is Code.STALE


def test_one_operation_at_a_time() -> None:
    machine = fences(seen(7))
    machine.enter(A, EPOCH, 7, 0.0)
    machine.observe(seen(9, B))
    assert isinstance(machine.enter(B, EPOCH, 9, 0.0), Wait)
    machine.leave(A, EPOCH, 7)
    assert isinstance(machine.enter(B, EPOCH, 9, 0.0), Accept)


def test_a_restarted_daemon_waits_for_agreement() -> None:
    machine = Fences(Record(EPOCH, closed=5))
    machine.observe(seen(7))
    assert not machine.publishable
    assert isinstance(machine.enter(A, EPOCH, 7, 0.0), Wait)
    machine.agree()
    assert machine.publishable
    assert isinstance(machine.enter(A, EPOCH, 7, 0.0), Accept)


def test_only_the_holder_of_the_open_operation_may_map() -> None:
    machine = fences(seen(7))
    assert isinstance(machine.opened(A), Refuse)
    machine.enter(A, EPOCH, 7, 0.0)
    assert isinstance(machine.opened(A), Open)
    assert isinstance(machine.opened(B), Refuse)
    assert isinstance(machine.opened(A_AGAIN), Refuse)
    machine.leave(A, EPOCH, 7)
    assert isinstance(machine.opened(A), Refuse)


def test_leave_closes_once_and_may_be_repeated() -> None:
    machine = fences(seen(7))
    machine.enter(A, EPOCH, 7, 0.0)
    assert machine.leave(A, EPOCH, 7) is None
    assert (machine.record.closed, machine.record.open) == (7, None)
    assert machine.leave(A, EPOCH, 7) is None


def test_leave_of_another_or_of_what_was_not_entered_is_refused() -> None:
    machine = fences(seen(7))
    assert machine.leave(A, EPOCH, 7) is not None
    machine.enter(A, EPOCH, 7, 0.0)
    assert machine.leave(B, EPOCH, 7) is not None
    assert machine.leave(A, EPOCH, 8) is not None
    assert machine.record.open is not None


def test_an_operation_outlives_its_lease_and_its_limit() -> None:
    machine = fences(seen(7))
    machine.enter(A, EPOCH, 7, 0.0)
    machine.observe(seen(7, token=False))
    assert machine.advance(living(A), 1e6) is None
    assert machine.record.open is not None
    assert isinstance(machine.opened(A), Open)


def test_proven_death_closes_the_operation() -> None:
    machine = fences(seen(7))
    machine.enter(A, EPOCH, 7, 0.0)
    machine.advance(living(), 1.0)
    assert (machine.record.closed, machine.record.open) == (7, None)


def test_what_was_never_entered_is_closed_when_its_token_is_gone() -> None:
    machine = fences(seen(7))
    machine.advance(living(A), 0.0)
    assert machine.record.closed == 0
    machine.observe(seen(7, token=False))
    machine.advance(living(A), 0.0)
    assert machine.record.closed == 7


def test_a_seat_behind_an_open_operation_is_not_closed_over_it() -> None:
    machine = fences(seen(7))
    machine.enter(A, EPOCH, 7, 0.0)
    machine.observe(seen(9, B, token=False))
    machine.advance(living(A, B), 0.0)
    assert machine.record.open is not None
    machine.leave(A, EPOCH, 7)
    machine.advance(living(A, B), 0.0)
    assert machine.record.closed == 9


def test_reclaim_kills_then_waits_then_closes() -> None:
    machine = fences(seen(7))
    machine.enter(A, EPOCH, 7, 0.0)
    machine.observe(seen(9, A, token=False, order=RECLAIM))
    assert machine.advance(living(A), 0.0) == Kill(A, "reclaimed by seat 9")
    assert machine.record.open is not None
    assert machine.advance(living(), 0.0) is None
    assert (machine.record.closed, machine.record.open) == (9, None)


def test_reclaim_refuses_older_enters_of_its_target() -> None:
    machine = fences(seen(7), seen(9, A, token=False, order=RECLAIM))
    assert code(machine.enter(A, EPOCH, 7, 0.0)) is Code.STALE


def test_reclaim_of_another_start_of_the_engine_kills_nobody_else() -> None:
    machine = fences(seen(9, A, token=False, order=RECLAIM))
    assert machine.advance(living(A_AGAIN), 0.0) is None
    assert machine.record.closed == 9


def test_a_reclaim_that_is_done_does_not_kill_again() -> None:
    machine = fences(seen(9, A, token=False, order=RECLAIM))
    machine.advance(living(), 0.0)
    assert machine.advance(living(A), 0.0) is None


def test_a_new_epoch_starts_from_zero_when_nothing_is_open() -> None:
    machine = fences(record=Record(EPOCH, closed=70, seen=90))
    machine.observe(View("e2", 3))
    machine.advance(living(), 0.0)
    assert machine.record == Record("e2", closed=0, seen=3)
    machine.observe(seen(5, epoch="e2"))
    assert isinstance(machine.enter(A, "e2", 5, 0.0), Accept)


def test_a_new_epoch_waits_for_the_open_operation_and_accepts_nothing_meanwhile() -> None:
    machine = fences(seen(7))
    machine.enter(A, EPOCH, 7, 0.0)
    machine.observe(seen(5, B, epoch="e2"))
    machine.advance(living(A, B), 0.0)
    assert not machine.publishable
    assert isinstance(machine.enter(B, "e2", 5, 0.0), Wait)
    assert isinstance(machine.opened(A), Open)
    assert machine.leave(A, EPOCH, 7) is None
    machine.advance(living(A, B), 0.0)
    assert machine.record.epoch == "e2"
    assert isinstance(machine.enter(B, "e2", 5, 0.0), Accept)


def test_over_its_limit_the_operation_of_an_old_epoch_is_killed() -> None:
    machine = fences(seen(7))
    machine.enter(A, EPOCH, 7, 100.0)
    assert machine.deadline() is None
    machine.observe(View("e2", 3))
    assert machine.deadline() == 160.0
    assert machine.advance(living(A), 159.0) is None
    assert isinstance(machine.advance(living(A), 160.0), Kill)
    machine.advance(living(), 161.0)
    machine.advance(living(), 161.0)
    assert machine.record == Record("e2", closed=0, seen=3)


def test_the_limit_starts_again_with_the_daemon() -> None:
    machine = fences(record=Record(EPOCH, 5, 7, Open(A, 7, OFFLOAD, 0, 60.0)))
    machine.observe(View("e2", 3))
    machine.advance(living(A), 1000.0)
    assert machine.deadline() == 1060.0


def test_no_epoch_in_etcd_grants_nothing_and_kills_nobody() -> None:
    machine = fences(seen(7))
    machine.enter(A, EPOCH, 7, 0.0)
    machine.observe(View("", 1))
    assert machine.advance(living(A), 1e6) is None
    assert machine.record.open is not None
    assert not machine.publishable


def test_a_restored_snapshot_is_refused_until_the_epoch_is_new() -> None:
    machine = fences(seen(70), record=Record(EPOCH, closed=60, seen=60))
    machine.observe(seen(50, B))
    assert machine.regressed
    assert not machine.publishable
    assert code(machine.enter(B, EPOCH, 65, 0.0)) is Code.STALE
    machine.observe(seen(64, B, token=False, order=RECLAIM))
    assert machine.advance(living(B), 0.0) is None
    machine.observe(View("e2", 80))
    assert not machine.regressed
    machine.advance(living(), 0.0)
    assert machine.publishable


def test_what_was_withdrawn_was_never_open() -> None:
    machine = fences(seen(7))
    accepted = machine.enter(A, EPOCH, 7, 0.0)
    assert isinstance(accepted, Accept)
    machine.withdraw(accepted.open)
    assert machine.record.open is None
    assert machine.record.closed == 0
    assert isinstance(machine.enter(A, EPOCH, 7, 0.0), Accept)


def test_the_record_survives_the_journal() -> None:
    record = Record(EPOCH, 5, 7, Open(A, 7, OFFLOAD, 0, 60.0))
    assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record
    restarted = fences(seen(7, token=False), record=record)
    assert isinstance(restarted.enter(A, EPOCH, 7, 0.0), Accept)
    restarted.advance(living(A), 0.0)
    assert restarted.record.open == record.open
