"""Both sides of a KV pull, one event at a time: what the histories in tests/sim do not spell out."""

from __future__ import annotations

import msgspec
import pytest

from transfer.kv import messages
from transfer.kv.coverage import Overlap, cells, whole, without
from transfer.kv.messages import (
    Answer,
    Closed,
    Confirm,
    Confirmed,
    Done,
    NotYet,
    Open,
    Opened,
    Refused,
    Say,
    Shape,
    Terms,
)
from transfer.kv.plan import Pull
from transfer.kv.sink import Action, Cancel, Fetch, Finished, Send, Sink, Wanted
from transfer.kv.source import Outcome, Released, Source

REQUEST, EPOCH, OTHER = "0" * 32, "a" * 32, "b" * 32
SHAPE = Shape(decode_tp=1, decode_pp=1, units=2)
TERMS = Terms(window=2)
WANTED = Wanted(
    request=REQUEST,
    epoch=EPOCH,
    prefill_tp=1,
    decode_tp=1,
    decode_rank=0,
    num_kv_heads=2,
    units=2,
    cell_bytes=(10, 10, 10),
    stages=((0, 3),),
)
LAYER = 2 * 2 * 10
OPEN, CONFIRM = Open(REQUEST, EPOCH, 0, SHAPE), Confirm(REQUEST, EPOCH, 0)


def done(*, ok: bool) -> Done:
    return Done(REQUEST, EPOCH, 0, SHAPE, ok)


@pytest.fixture
def source() -> Source:
    """Rank 0 of one, with blocks 4 and 7 on offer since 0."""
    made = Source(EPOCH, 1, 0, 2)
    made.offer(REQUEST, [4, 7], 0.0)
    return made


def reading() -> Sink:
    """A sink whose pull has two of its three layers in the air, at time 0."""
    sink = Sink(TERMS)
    sink.begin(WANTED, 0.0)
    fetches = sink.receive(0, Opened(REQUEST, 0), 0.0)
    assert [action.layer for action in fetches if isinstance(action, Fetch)] == [0, 1]
    return sink


def pulled() -> Sink:
    """A sink that waits for confirmation."""
    sink = reading()
    for layer in range(3):
        last = sink.fetched(REQUEST, 0, layer, LAYER, "", 0.0)
    assert last == [Send(0, CONFIRM)]
    return sink


def verdict(actions: list[Action]) -> Finished:
    (found,) = [action for action in actions if isinstance(action, Finished)]
    return found


# ---- the prefill side


def test_a_pull_from_beginning_to_end(source: Source) -> None:
    assert source.receive(OPEN, 1.0) == (Opened(REQUEST, 0), [])
    assert source.receive(CONFIRM, 2.0) == (Confirmed(REQUEST, 0, ()), [])
    assert source.receive(done(ok=True), 3.0) == (Closed(REQUEST, 0), [Released(REQUEST, Outcome.DELIVERED)])
    assert source.receive(done(ok=True), 4.0) == (Closed(REQUEST, 0), [])
    assert source.idle


def test_a_failed_pull_is_said_to_have_failed(source: Source) -> None:
    assert source.receive(done(ok=False), 1.0)[1] == [Released(REQUEST, Outcome.FAILED)]


def test_blocks_freed_early_are_named(source: Source) -> None:
    source.receive(OPEN, 1.0)
    source.freed([7, 8])
    assert source.receive(CONFIRM, 2.0)[0] == Confirmed(REQUEST, 0, (1,))
    source.offer(OTHER, [7], 2.0)
    source.receive(Open(OTHER, EPOCH, 0, SHAPE), 2.0)
    assert source.receive(Confirm(OTHER, EPOCH, 0), 2.0)[0] == Confirmed(OTHER, 0, ())


@pytest.mark.parametrize(("opened", "ends"), [(False, TERMS.first_s), (True, 1.0 + TERMS.lease_s)])
def test_nobody_who_says_anything(source: Source, opened: bool, ends: float) -> None:
    if opened:
        source.receive(OPEN, 1.0)
    assert source.due == ends
    assert source.tick(ends - 0.1) == []
    answer, released = source.receive(CONFIRM, ends)
    assert released == [Released(REQUEST, Outcome.EXPIRED)]
    assert isinstance(answer, Refused)


@pytest.mark.parametrize(
    ("say", "reason"),
    [
        (Open(REQUEST, OTHER, 0, SHAPE), "started anew"),
        (Confirm(REQUEST, OTHER, 0), "started anew"),
        (CONFIRM, "nothing to read"),
        (Open(REQUEST, EPOCH, 1, SHAPE), "nothing to read"),
        (Open(REQUEST, EPOCH, 0, Shape(3, 1, 2)), "decode_tp 3 cannot hold 2 KV heads"),
    ],
)
def test_who_may_not_read(source: Source, say: Say, reason: str) -> None:
    answer, _ = source.receive(say, 1.0)
    assert isinstance(answer, Refused)
    assert reason in answer.reason


def test_readers_agree(source: Source) -> None:
    source.receive(OPEN, 1.0)
    answer, _ = source.receive(Open(REQUEST, EPOCH, 0, Shape(2, 1, 2)), 1.0)
    assert isinstance(answer, Refused)
    assert "disagree" in answer.reason


def test_a_reader_that_knows_before_the_rank_does() -> None:
    """Also a *done*: were it answered, the offer that comes later would wait for nobody."""
    source = Source(EPOCH, 1, 0, 2)
    for say in (OPEN, CONFIRM, done(ok=True)):
        assert source.receive(say, 0.0) == (NotYet(REQUEST, 0), [])
    assert source.receive(Done(REQUEST, OTHER, 0, SHAPE, False), 0.0)[0] == Closed(REQUEST, 0)


def test_draining_ends_what_nobody_reads_and_bounds_the_rest(source: Source) -> None:
    source.offer(OTHER, [1], 0.0)
    source.receive(OPEN, 1.0)
    assert source.drain(2.0, 5.0) == [Released(OTHER, Outcome.WITHDRAWN)]
    source.receive(OPEN, 4.0)
    assert source.due == 5.0
    assert source.tick(5.0) == [Released(REQUEST, Outcome.WITHDRAWN)]
    assert source.idle


def test_offers_of_an_engine_that_computes_before_all_of_its_memory_is_back_begin_then(source: Source) -> None:
    source.drain(2.0, 5.0)
    source.offer(OTHER, [1], 6.0)
    assert source.receive(Open(OTHER, EPOCH, 0, SHAPE), 7.0) == (NotYet(OTHER, 0), [])
    assert source.idle  # so the engine may sleep again
    with pytest.raises(ValueError, match="draw an id"):
        source.offer(OTHER, [1], 7.0)
    source.drain(8.0, 9.0)
    source.resume(100.0)
    assert source.due == 100.0 + TERMS.first_s
    assert source.receive(Open(OTHER, EPOCH, 0, SHAPE), 101.0) == (Opened(OTHER, 0), [])
    source.offer("d" * 32, [2], 102.0)
    assert source.offers == 2  # that of the fixture was withdrawn


def test_the_engine_has_blocks_back_that_nobody_has_heard_of(source: Source) -> None:
    source.drain(2.0, 5.0)
    source.offer(OTHER, [1], 6.0)
    assert source.withdraw(OTHER) == [Released(OTHER, Outcome.WITHDRAWN)]
    source.resume(7.0)
    assert source.offers == 0


def test_an_id_is_offered_once(source: Source) -> None:
    assert source.withdraw(REQUEST) == [Released(REQUEST, Outcome.WITHDRAWN)]
    assert source.withdraw(REQUEST) == []
    with pytest.raises(ValueError, match="draw an id"):
        source.offer(REQUEST, [1], 1.0)


def test_every_stage_of_the_decode_side_is_waited_for(source: Source) -> None:
    shape = Shape(1, 2, 2)
    for reader, released in ((1, []), (0, [Released(REQUEST, Outcome.DELIVERED)])):
        assert source.receive(Done(REQUEST, EPOCH, reader, shape, True), 1.0)[1] == released


# ---- the decode side


def test_ready_only_after_confirmation() -> None:
    sink = pulled()
    actions = sink.receive(0, Confirmed(REQUEST, 0, ()), 1.0)
    assert actions == [Send(0, done(ok=True)), Finished(REQUEST, (0, 1), (), ())]
    assert not sink.busy
    sink.receive(0, Closed(REQUEST, 0), 1.0)
    assert sink.pulls == 0


def test_a_stale_block_is_not_ready() -> None:
    found = verdict(pulled().receive(0, Confirmed(REQUEST, 0, (1,)), 1.0))
    assert (found.ready, found.failed) == ((0,), (1,))
    assert "early" in found.reasons[0]


def test_too_few_bytes_are_a_failure() -> None:
    sink = reading()
    sink.fetched(REQUEST, 0, 0, LAYER, "", 0.0)
    actions = sink.fetched(REQUEST, 0, 1, LAYER - 1, "", 0.0)
    assert actions == [Cancel(REQUEST, 0), Send(0, done(ok=False))]
    found = verdict(sink.fetched(REQUEST, 0, 2, 0, "cancelled", 0.0))
    assert found.failed == (0, 1)
    assert found.reasons == ("prefill rank 0: 39 bytes of layer 1 came, 40 were due",)


def test_blocks_are_not_given_back_while_something_flies() -> None:
    sink = reading()
    assert sink.abort(REQUEST, 1.0) == [Cancel(REQUEST, 0), Send(0, done(ok=False))]
    assert sink.busy
    assert sink.fetched(REQUEST, 0, 1, LAYER, "", 1.0) == []
    assert verdict(sink.fetched(REQUEST, 0, 0, 0, "cancelled", 2.0)).failed == (0, 1)
    assert sink.abort(REQUEST, 3.0) == []


def test_what_is_not_answered_is_said_again_until_the_peer_must_be_gone() -> None:
    sink = pulled()
    assert sink.tick(0.5) == []
    assert sink.due == TERMS.beat_s
    assert sink.tick(TERMS.beat_s) == [Send(0, CONFIRM)]
    found = verdict(sink.tick(TERMS.patience_s))
    assert found.failed == (0, 1)
    assert "silent" in found.reasons[0]
    assert sink.tick(TERMS.patience_s + TERMS.beat_s) == [Send(0, done(ok=False))]
    assert sink.pulls == 1
    assert sink.tick(TERMS.patience_s + TERMS.lease_s) == []
    assert sink.pulls == 0


def test_a_refusal_ends_the_leg_at_once() -> None:
    sink = reading()
    assert sink.receive(0, Refused(REQUEST, 0, "given back"), 1.0)[0] == Cancel(REQUEST, 0)


def test_answers_that_come_late_or_to_others_change_nothing() -> None:
    sink = pulled()
    strangers: list[tuple[int, Answer]] = [
        (1, Confirmed(REQUEST, 0, ())),
        (0, Confirmed(OTHER, 0, ())),
        (0, Confirmed(REQUEST, 1, ())),
        (0, Opened(REQUEST, 0)),
        (0, Closed(REQUEST, 0)),
        (0, NotYet(REQUEST, 0)),
    ]
    assert [sink.receive(peer, answer, 0.1) for peer, answer in strangers] == [[]] * len(strangers)
    assert sink.busy
    with pytest.raises(ValueError, match="under way"):
        sink.fetched(REQUEST, 0, 0, LAYER, "", 0.1)
    with pytest.raises(ValueError, match="already"):
        sink.begin(WANTED, 0.1)


def test_a_confirmation_before_the_last_read_does_not_count() -> None:
    """It says what was so when it was sent."""
    sink = reading()
    assert sink.receive(0, Confirmed(REQUEST, 0, ()), 0.0) == []
    assert sink.busy


def test_a_pull_has_a_limit() -> None:
    sink = Sink(Terms(limit_s=3.0))
    sink.begin(WANTED, 0.0)
    assert sink.abort("f" * 32, 0.0) == []
    assert "3 s" in verdict(sink.tick(3.0)).reasons[0]


def test_whom_nobody_reads_is_told() -> None:
    """One block, eight replicas: one leg reads, and the others only close."""
    sink = Sink()
    wanted = msgspec.structs.replace(WANTED, prefill_tp=8, num_kv_heads=1, units=1)
    says = [action.say for action in sink.begin(wanted, 0.0) if isinstance(action, Send)]
    assert sorted(type(say).__name__ for say in says) == ["Done"] * 7 + ["Open"]


# ---- cells, and what goes over the wire


def test_cells() -> None:
    both = cells([Pull(0, 0, 2, 0, 0, 1), Pull(1, 0, 1, 0, 1, 1)], 2)
    assert both == 0b0111
    assert whole(both, 2, 2, 1) == [True, False]
    assert whole(both, 2, 2, 2) == [False]
    assert whole(0b111111, 2, 3, 2) == [True, True]
    assert without(0b1111, 2, [1]) == 0b0011
    with pytest.raises(Overlap):
        cells([Pull(0, 0, 2, 0, 0, 1), Pull(1, 1, 2, 0, 0, 1)], 2)


@pytest.mark.parametrize("say", [OPEN, CONFIRM, done(ok=False)])
def test_messages_survive_the_wire(say: Say) -> None:
    assert messages.decode_say(messages.encode(say)) == say


@pytest.mark.parametrize(
    "say",
    [
        Open("no id", EPOCH, 0, SHAPE),
        Open(REQUEST, EPOCH, -1, SHAPE),
        Open(REQUEST, EPOCH, 0, Shape(0, 1, 2)),
        Open(REQUEST, EPOCH, 0, Shape(1, 1, 1 << 21)),
    ],
)
def test_messages_are_bounded(say: Say) -> None:
    with pytest.raises(msgspec.ValidationError):
        messages.decode_say(messages.encode(say))
    with pytest.raises(msgspec.ValidationError):
        messages.decode_answer(messages.encode(say))


@pytest.mark.parametrize(
    "change", [{"beat_s": 6.0}, {"patience_s": 15.0}, {"window": 0}, {"lanes": 0}, {"beat_s": 0.0}]
)
def test_terms_that_cannot_work_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Terms"):
        Terms(**change)  # type: ignore[arg-type]
