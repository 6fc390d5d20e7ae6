"""PROTOCOL rule 5, example by example; tests/property/test_lifecycle.py has the rest."""

from __future__ import annotations

from coordinator.core.model import Bytes, Fence, Holder, Order, Phase, Step, Token
from engine_patch.actions import (
    Action,
    Drain,
    End,
    Enter,
    Leave,
    Offload,
    Publish,
    Register,
    Renew,
    Restore,
    Resume,
    Settle,
    Undo,
)
from engine_patch.events import (
    Denied,
    Drained,
    Entered,
    EnterRefused,
    EpochSeen,
    Failed,
    Held,
    LeaseGained,
    LeaseLost,
    Left,
    Loaded,
    Outcome,
    Ready,
    Resumed,
    TokensSeen,
    Undone,
    Worked,
)
from engine_patch.lifecycle import Lifecycle

ME = Holder("a", "n1")
DEV = "local/0"
OUTCOME = Outcome(held=Bytes(weights=10, kv=2), restored=10, steps=(Step("copy", 0.5),))


def held(order: Order, revision: int, lease: int = 7, device: str = DEV, holder: Holder = ME) -> Held:
    return Held(device, Token(holder=holder, lease=lease, order=order, bytes=12), revision)


def tokens(*helds: Held) -> TokensSeen:
    return TokensSeen(helds)


def kinds(actions: tuple[Action, ...]) -> list[type]:
    return [type(a) for a in actions]


def registered(devices: tuple[str, ...] = (DEV,)) -> Lifecycle:
    life = Lifecycle(ME, devices)
    life.handle(EpochSeen("e"))
    life.handle(LeaseGained(7))
    return life


def resident(devices: tuple[str, ...] = (DEV,)) -> Lifecycle:
    life = registered(devices)
    life.handle(tokens(*(held(Order.RESTORE, 5, device=d) for d in devices)))
    for d in devices:
        life.handle(Entered(d, 0.1))
    life.handle(Loaded(OUTCOME))
    life.handle(Resumed(0.0))
    for d in devices:
        life.handle(Left(d, 0.0))
    assert life.phase is Phase.RESIDENT
    return life


def offloaded() -> Lifecycle:
    life = resident()
    life.handle(tokens(held(Order.OFFLOAD, 8)))
    life.handle(Drained(0.0))
    life.handle(Entered(DEV, 0.0))
    life.handle(Worked(Outcome(kv_saved=2)))
    life.handle(Left(DEV, 0.0))
    assert life.phase is Phase.OFFLOADED
    return life


def test_start_up_enters_then_waits_for_the_workers_then_publishes_the_truth():
    life = registered()
    publish, enter = life.handle(tokens(held(Order.RESTORE, 5)))
    assert enter == Enter(DEV, Fence("e", 5))
    assert isinstance(publish, Publish)
    assert publish.soon
    assert life.handle(Entered(DEV, 0.1)) == ()
    assert kinds(life.handle(Loaded(OUTCOME))) == [Resume, Leave]
    assert life.handle(Resumed(0.0)) == ()
    (last,) = life.handle(Left(DEV, 0.2))
    assert isinstance(last, Publish)
    assert (last.residency.phase, last.residency.fence) == (Phase.RESIDENT, Fence("e", 5))
    assert last.residency.held == OUTCOME.held
    assert [s.name for s in last.residency.steps] == ["enter", "copy"]


def test_offload_drains_and_enters_then_offloads_leaves_publishes():
    life = resident()
    publish, drain, enter = life.handle(tokens(held(Order.OFFLOAD, 8)))
    assert (kinds((publish,)), drain, enter) == ([Publish], Drain(), Enter(DEV, Fence("e", 8)))
    assert life.handle(Drained(0.01)) == ()
    assert life.handle(Entered(DEV, 0.01)) == (Offload(),)
    (leave,) = life.handle(Worked(Outcome(kv_saved=2)))
    (last,) = life.handle(Left(DEV, 0.0))
    assert isinstance(last, Publish)
    assert leave == Leave(DEV, Fence("e", 8), last.residency)
    assert (last.residency.phase, last.residency.held.total, last.residency.kv_saved) == (Phase.OFFLOADED, 0, 2)


def test_offload_is_ordered_while_what_runs_is_still_being_frozen():
    """The engine lets no page leave before (tests/engine/test_draining.py)."""
    life = resident()
    life.handle(tokens(held(Order.OFFLOAD, 8)))
    assert life.handle(Entered(DEV, 0.01)) == (Offload(),)
    assert life.handle(Drained(0.02)) == ()
    (leave,) = life.handle(Worked(Outcome(kv_saved=2)))
    assert isinstance(leave, Leave)
    assert leave.residency is not None
    assert [(s.name, s.seconds) for s in leave.residency.steps] == [("enter", 0.01), ("drain", 0.02)]


def test_an_operation_is_not_over_before_it_was_heard_that_what_ran_is_frozen():
    life = resident()
    life.handle(tokens(held(Order.OFFLOAD, 8)))
    life.handle(Entered(DEV, 0.01))
    assert kinds(life.handle(Worked(Outcome()))) == [Leave]
    assert life.handle(Left(DEV, 0.0)) == ()
    (last,) = life.handle(Drained(0.02))
    assert isinstance(last, Publish)
    assert last.residency.phase is Phase.OFFLOADED


def test_a_refused_entry_is_given_up_only_when_what_runs_is_frozen():
    """Requests are let run on when they stand still: never while they are being frozen."""
    life = resident()
    life.handle(tokens(held(Order.OFFLOAD, 8)))
    assert life.handle(EnterRefused(DEV, "stale")) == ()
    assert life.handle(Drained(0.0)) == (Resume(),)
    (publish,) = life.handle(Resumed(0.0))
    assert isinstance(publish, Publish)
    assert (publish.residency.phase, publish.residency.fence) == (Phase.RESIDENT, Fence("e", 5))


def test_restore_opens_the_gate_before_the_residency_is_put():
    life = offloaded()
    assert kinds(life.handle(tokens(held(Order.RESTORE, 9)))) == [Publish, Enter]
    assert life.handle(Entered(DEV, 0.0)) == (Restore(),)
    assert kinds(life.handle(Worked(OUTCOME))) == [Resume, Leave]


def ready() -> Lifecycle:
    """Requests run, the copy goes on."""
    life = offloaded()
    life.handle(tokens(held(Order.RESTORE, 9)))
    life.handle(Entered(DEV, 0.0))
    assert life.handle(Ready(Outcome(steps=(Step("map", 0.1),)))) == (Resume(), Settle())
    return life


def test_requests_run_before_the_copy_ends_and_the_operation_ends_after_it():
    life = ready()
    assert life.handle(Resumed(0.0)) == ()
    assert life.phase is Phase.RESTORING
    (leave,) = life.handle(Worked(OUTCOME))
    (last,) = life.handle(Left(DEV, 0.0))
    assert isinstance(last, Publish)
    assert leave == Leave(DEV, Fence("e", 9), last.residency)
    assert (last.residency.phase, last.residency.held, last.residency.restored) == (Phase.RESIDENT, OUTCOME.held, 10)
    assert [s.name for s in last.residency.steps] == ["enter", "map", "resume", "copy"]


def test_a_copy_may_end_before_the_requests_run():
    life = ready()
    assert kinds(life.handle(Worked(OUTCOME))) == [Leave]
    assert life.handle(Left(DEV, 0.0)) == ()
    (last,) = life.handle(Resumed(0.0))
    assert isinstance(last, Publish)
    assert last.residency.phase is Phase.RESIDENT


def test_a_token_that_comes_during_the_copy_waits_for_its_end():
    life = ready()
    assert life.handle(tokens(held(Order.OFFLOAD, 12))) == ()
    assert life.handle(Resumed(0.0)) == ()
    life.handle(Worked(OUTCOME))
    assert kinds(life.handle(Left(DEV, 0.0))) == [Publish, Publish, Drain, Enter]


def test_a_copy_that_fails_ends_the_engine_though_requests_run():
    life = ready()
    life.handle(Resumed(0.0))
    publish, end = life.handle(Failed("restore: came back wrong"))
    assert isinstance(publish, Publish)
    assert (publish.residency.phase, end) == (Phase.FAILED, End("restore: came back wrong"))


def test_a_token_at_or_below_the_last_fence_is_old():
    life = offloaded()
    assert life.handle(tokens(held(Order.RESTORE, 8))) == ()
    assert life.handle(tokens(held(Order.RESTORE, 5))) == ()


def test_tokens_of_another_lease_holder_or_nonce_are_not_mine():
    life = offloaded()
    assert life.handle(tokens(held(Order.RESTORE, 9, lease=6))) == ()
    assert life.handle(tokens(held(Order.RESTORE, 9, holder=Holder("a", "n0")))) == ()
    assert life.handle(tokens(held(Order.RESTORE, 9, holder=Holder("b", "n1")))) == ()


def test_the_last_fence_dies_with_the_lease():
    life = offloaded()
    life.handle(LeaseLost())
    (register,) = life.handle(LeaseGained(9))
    assert isinstance(register, Register)
    assert register.residency.phase is Phase.OFFLOADED
    assert kinds(life.handle(tokens(held(Order.RESTORE, 8, lease=9)))) == [Publish, Enter]


def test_lease_lost_while_draining_touches_nothing_and_serves_on():
    life = resident()
    life.handle(tokens(held(Order.OFFLOAD, 8)))
    life.handle(LeaseLost())
    assert life.handle(Drained(0.0)) == ()
    assert life.handle(EnterRefused(DEV, "stale")) == (Resume(),)
    (publish,) = life.handle(Resumed(0.0))
    assert isinstance(publish, Publish)
    assert (publish.residency.phase, publish.residency.fence) == (Phase.RESIDENT, Fence("e", 5))


def test_an_entry_that_waits_while_draining_is_not_asked_again_when_its_token_is_gone():
    life = resident()
    life.handle(tokens(held(Order.OFFLOAD, 8)))
    assert life.handle(EnterRefused(DEV, "timeout", retry=True)) == (Enter(DEV, Fence("e", 8)),)
    life.handle(LeaseLost())
    assert life.handle(EnterRefused(DEV, "timeout", retry=True)) == ()
    assert life.handle(Drained(0.0)) == (Resume(),)


def test_what_was_entered_while_draining_runs_on_without_its_lease():
    """PROTOCOL rule 7: an entered operation ends by `leave`, never with its token."""
    life = resident()
    life.handle(tokens(held(Order.OFFLOAD, 8)))
    assert life.handle(Entered(DEV, 0.0)) == (Offload(),)
    life.handle(LeaseLost())
    assert life.handle(Drained(0.0)) == ()
    assert kinds(life.handle(Worked(Outcome()))) == [Leave]


def test_an_entered_operation_outlives_its_lease_and_says_busy():
    life = resident()
    life.handle(tokens(held(Order.OFFLOAD, 8)))
    life.handle(Drained(0.0))
    life.handle(Entered(DEV, 0.0))
    life.handle(LeaseLost())
    (register,) = life.handle(LeaseGained(9))
    assert isinstance(register, Register)
    assert (register.residency.phase, register.residency.busy) == (Phase.DRAINING, True)
    assert kinds(life.handle(Worked(Outcome()))) == [Leave]
    (publish,) = life.handle(Left(DEV, 0.0))
    assert isinstance(publish, Publish)
    assert (publish.residency.phase, publish.residency.busy) == (Phase.OFFLOADED, False)


def test_one_refused_enter_leaves_the_others_and_resumes():
    life = resident(("local/0", "local/1"))
    life.handle(tokens(held(Order.OFFLOAD, 8, device="local/0"), held(Order.OFFLOAD, 8, device="local/1")))
    life.handle(Drained(0.0))
    assert life.handle(Entered("local/0", 0.0)) == ()
    actions = life.handle(EnterRefused("local/1", "stale"))
    assert actions == (Resume(), Leave("local/0", Fence("e", 8)))
    life.handle(Resumed(0.0))
    (publish,) = life.handle(Left("local/0", 0.0))
    assert isinstance(publish, Publish)
    assert publish.residency.phase is Phase.RESIDENT
    assert "stale" in publish.residency.error


def test_half_a_gang_is_no_token():
    life = resident(("local/0", "local/1"))
    assert life.handle(tokens(held(Order.OFFLOAD, 8, device="local/0"))) == ()
    assert life.handle(tokens(held(Order.OFFLOAD, 8, device="local/0"), held(Order.OFFLOAD, 9, device="local/1"))) == ()


def test_a_wait_that_ended_is_asked_again_while_the_token_stands():
    life = offloaded()
    life.handle(tokens(held(Order.RESTORE, 9)))
    assert life.handle(EnterRefused(DEV, "timeout", retry=True)) == (Enter(DEV, Fence("e", 9)),)
    life.handle(tokens())
    (publish,) = life.handle(EnterRefused(DEV, "timeout", retry=True))
    assert isinstance(publish, Publish)
    assert publish.residency.phase is Phase.OFFLOADED


def test_an_entry_without_an_answer_is_left_in_any_case():
    """The daemon may have taken it: an operation that nobody leaves would end with a healthy engine's reclaim."""
    life = offloaded()
    life.handle(tokens(held(Order.RESTORE, 9)))
    life.handle(tokens())
    assert life.handle(EnterRefused(DEV, "no answer", retry=True, unsure=True)) == (Leave(DEV, Fence("e", 9)),)
    (publish,) = life.handle(Left(DEV, 0.0))
    assert isinstance(publish, Publish)
    assert publish.residency.phase is Phase.OFFLOADED


def test_denied_pages_are_undone_left_and_answered_offloaded_with_the_reason():
    life = offloaded()
    life.handle(tokens(held(Order.RESTORE, 9)))
    life.handle(Entered(DEV, 0.0))
    assert life.handle(Denied("2 MiB short")) == (Undo(),)
    (leave,) = life.handle(Undone(0.0))
    (publish,) = life.handle(Left(DEV, 0.0))
    assert isinstance(publish, Publish)
    assert leave == Leave(DEV, Fence("e", 9), publish.residency)
    assert publish.residency.phase is Phase.OFFLOADED
    assert publish.residency.error == "2 MiB short"
    assert publish.residency.fence == Fence("e", 9)


def test_an_order_that_is_already_so_is_closed_without_touching_memory():
    life = offloaded()
    assert life.handle(tokens(held(Order.OFFLOAD, 9))) == (Enter(DEV, Fence("e", 9)),)
    (leave,) = life.handle(Entered(DEV, 0.0))
    (publish,) = life.handle(Left(DEV, 0.0))
    assert isinstance(publish, Publish)
    assert leave == Leave(DEV, Fence("e", 9), publish.residency)
    assert publish.residency.phase is Phase.OFFLOADED


def test_the_next_token_waits_for_the_operation_under_way():
    life = resident()
    life.handle(tokens(held(Order.OFFLOAD, 8)))
    assert life.handle(tokens(held(Order.RESTORE, 9))) == ()
    assert life.handle(EnterRefused(DEV, "stale")) == ()
    assert kinds(life.handle(Drained(0.0))) == [Resume]
    actions = life.handle(Resumed(0.0))
    assert kinds(actions) == [Publish, Enter]


def test_a_new_epoch_voids_the_lease():
    life = resident()
    assert life.handle(EpochSeen("e2")) == (Renew(),)
    assert life.handle(tokens(held(Order.OFFLOAD, 8))) == ()
    life.handle(LeaseGained(9))
    (_, drain, enter) = life.handle(tokens(held(Order.OFFLOAD, 2, lease=9)))
    assert (drain, enter) == (Drain(), Enter(DEV, Fence("e2", 2)))


def test_an_epoch_that_is_gone_permits_nothing():
    life = resident()
    assert life.handle(EpochSeen(None)) == (Renew(),)
    life.handle(LeaseGained(9))
    assert life.handle(tokens(held(Order.OFFLOAD, 20, lease=9))) == ()
    assert kinds(life.handle(EpochSeen("e2"))) == [Publish, Drain, Enter]


def test_a_failure_is_published_and_ends_the_engine_for_good():
    life = offloaded()
    life.handle(tokens(held(Order.RESTORE, 9)))
    life.handle(Entered(DEV, 0.0))
    publish, end = life.handle(Failed("digest of chunk 3 differs"))
    assert isinstance(publish, Publish)
    assert publish.residency.phase is Phase.FAILED
    assert end == End("digest of chunk 3 differs")
    assert life.handle(tokens(held(Order.RESTORE, 12))) == ()
    (register,) = life.handle(LeaseGained(11))
    assert isinstance(register, Register)
    assert register.residency.phase is Phase.FAILED
