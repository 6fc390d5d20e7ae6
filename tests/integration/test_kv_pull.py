"""Whole pulls between a prefill and a decode engine (without vLLM): real caches, threads and TCP."""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from native._native import Boxes
from tests.helpers.kv_engines import LAYERS, Engines, engines
from tests.helpers.wires import PATIENCE_S, meanwhile
from transfer.errors import PeerLost
from transfer.kv.desk import Desk
from transfer.kv.messages import Answer, Confirm, Done, Open, Opened, Say, Shape, Terms
from transfer.kv.reader import Stopped
from transfer.kv.sink import Finished
from transfer.kv.source import Outcome, Released, Source
from transfer.transports import staged
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.frame import Header
from transfer.transports.staged import Range, receive

SRC, DST = [3, 1, 2, 9], [7, 0, 5, 11]
TOKENS = 30


def ended(each: Engines) -> list[Finished]:
    return [rank.finished.get(timeout=PATIENCE_S) for rank in each.decode]


def outcomes(each: Engines) -> set[Outcome]:
    return {rank.released.get(timeout=PATIENCE_S).outcome for rank in each.prefill}


@pytest.mark.parametrize(
    ("sizes", "kinds", "tokens"),
    [
        ((4, 2, 8), ("nhd-separate", "nhd-separate"), (8, 8)),
        ((2, 4, 8), ("nhd-separate", "hnd-joint"), (8, 8)),
        ((6, 4, 12), ("hnd-paired", "nhd-joint"), (8, 8)),
        ((4, 2, 2), ("hnd-separate", "hnd-separate"), (8, 4)),
        ((3, 2, 6), ("packed", "packed"), (8, 8)),
        ((3, 2, 1), ("latent", "latent"), (8, 8)),
    ],
)
def test_any_size_to_any_size(sizes: tuple[int, int, int], kinds: tuple[str, str], tokens: tuple[int, int]) -> None:
    """Several requests at once; each arrives, and every offer ends as delivered."""
    with engines(sizes, kinds, tokens) as each:
        dst = list(range(1, 1 + -(-TOKENS // tokens[1])))
        made = [(each.fill(TOKENS, blocks), blocks) for blocks in (SRC, [4, 5, 6, 7])]
        for (request, content), blocks in made:
            each.pull(request, TOKENS, blocks, dst)
            verdicts = ended(each)
            assert [(verdict.request, verdict.failed) for verdict in verdicts] == [(request, ())] * sizes[1]
            assert all(each.holds(rank, content, TOKENS, dst) for rank in each.decode)
            assert outcomes(each) == {Outcome.DELIVERED}
        assert all(rank.desk.idle for rank in each.prefill)


def test_swapped_heads_would_be_noticed() -> None:
    """The negative control of `holds`."""
    with engines((2, 1, 2), ("packed", "packed")) as each:
        request, content = each.fill(TOKENS, SRC)
        each.pull(request, TOKENS, SRC, DST)
        assert ended(each)[0].failed == ()
        assert each.holds(each.decode[0], content, TOKENS, DST)
        assert not each.holds(each.decode[0], content[:, :, :, ::-1], TOKENS, DST)


def test_a_prefill_rank_that_is_gone() -> None:
    """Its part must be computed, and with it every block; the other rank hears that the pull has failed."""
    with engines((2, 1, 4), ("hnd-separate", "hnd-separate")) as each:
        request, _ = each.fill(TOKENS, SRC)
        each.prefill[1].listener.stop()
        each.pull(request, TOKENS, SRC, DST)
        (verdict,) = ended(each)
        assert verdict.failed == (0, 1, 2, 3)
        assert "prefill rank 1" in verdict.reasons[0]
        assert each.prefill[0].released.get(timeout=PATIENCE_S).outcome is Outcome.DELIVERED
        assert each.prefill[1].desk.idle is False


def test_blocks_that_were_freed_early_are_computed_again() -> None:
    with engines((1, 2, 4), ("nhd-paired", "hnd-separate")) as each:
        request, _ = each.fill(TOKENS, SRC)
        each.prefill[0].desk.freed([SRC[2]])
        each.pull(request, TOKENS, SRC, DST)
        assert [(verdict.ready, verdict.failed) for verdict in ended(each)] == [((0, 1, 3), (2,))] * 2


@pytest.mark.parametrize("what", ["unknown", "another epoch", "withdrawn"])
def test_what_is_not_on_offer(what: str) -> None:
    with engines((1, 1, 2), ("packed", "packed")) as each:
        request, _ = each.fill(TOKENS, SRC)
        if what == "unknown":
            request = secrets.token_hex(16)
        elif what == "another epoch":
            each.epoch = secrets.token_hex(16)
        else:
            each.prefill[0].desk.withdraw(request)
        each.pull(request, TOKENS, SRC, DST)
        (verdict,) = ended(each)
        assert verdict.failed == (0, 1, 2, 3)
        assert verdict.reasons


def test_sizes_that_cannot_be_end_as_any_failure() -> None:
    with engines((1, 1, 2), ("packed", "packed")) as each:
        request, _ = each.fill(TOKENS, SRC)
        each.heads = 0
        each.pull(request, TOKENS, SRC, DST)
        assert "num_kv_heads" in ended(each)[0].reasons[0]
        each.prefill_tp = 2
        with pytest.raises(ValueError, match=r"prefill ranks \[1\]"):
            each.pull(request, TOKENS, SRC, DST)


@pytest.mark.parametrize("how", ["abort", "sleep"])
def test_aborted_pulls_give_their_blocks_back(how: str) -> None:
    """Whenever it comes: the verdict follows, and the prefill side is not left holding."""
    with engines((2, 1, 8), ("nhd-separate", "nhd-separate")) as each:
        puller = each.decode[0].puller
        request, content = each.fill(TOKENS, SRC)
        each.pull(request, TOKENS, SRC, DST)
        if how == "abort":
            puller.abort(request)
        else:
            assert puller.abort_all(PATIENCE_S)
        (verdict,) = ended(each)
        assert sorted(verdict.ready + verdict.failed) == [0, 1, 2, 3]
        if not verdict.failed:
            assert each.holds(each.decode[0], content, TOKENS, DST)
        assert outcomes(each) <= {Outcome.FAILED, Outcome.DELIVERED}


def test_a_layer_is_placed_while_the_next_is_pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    """One prefill rank: who places a layer waits until another layer comes, which one lane never would."""
    layers: set[int] = set()
    both = threading.Event()

    def placed(channel: Channel, header: Header, boxes: Boxes, into: Range, stage: Range, deadline: Deadline) -> None:
        layers.add(into[0])
        if len(layers) > 1:
            both.set()
        if not both.wait(PATIENCE_S):
            raise ValueError("nobody pulls the next layer")
        receive(channel, header, boxes, into, stage, deadline)

    with engines((1, 1, 2), ("nhd-separate", "hnd-separate")) as each:
        monkeypatch.setattr(staged, "receive", placed)
        request, content = each.fill(TOKENS, SRC)
        each.pull(request, TOKENS, SRC, DST)
        assert [verdict.failed for verdict in ended(each)] == [()]
        assert each.holds(each.decode[0], content, TOKENS, DST)


def test_sleep_of_the_prefill_side_waits_for_its_readers() -> None:
    with engines((1, 1, 2), ("packed", "packed")) as each:
        desk = each.prefill[0].desk
        request, _ = each.fill(TOKENS, SRC)
        desk.drain(5.0)
        assert desk.idle
        assert outcomes(each) == {Outcome.WITHDRAWN}
        desk.resume()
        again, content = each.fill(TOKENS, SRC)
        each.pull(again, TOKENS, SRC, DST)
        assert ended(each)[0].failed == ()
        assert each.holds(each.decode[0], content, TOKENS, DST)
        assert request != again


def test_drain_waits_for_a_reader_that_is_at_it() -> None:
    with engines((1, 1, 2), ("packed", "packed")) as each:
        desk = each.prefill[0].desk
        request, _ = each.fill(TOKENS, SRC)
        each.fill(TOKENS, [4, 5, 6, 7])
        shape = Shape(1, 1, 4)
        assert isinstance(desk.answer(Open(request, each.epoch, 0, shape)), Opened)
        drained = meanwhile(lambda: (desk.drain(PATIENCE_S), desk.idle))
        assert outcomes(each) == {Outcome.WITHDRAWN}  # the one that nobody reads: draining has begun
        assert not desk.idle
        desk.answer(Done(request, each.epoch, 0, shape, True))
        assert drained() == (None, True)


def test_leases_end_by_themselves() -> None:
    released: queue.SimpleQueue[Released] = queue.SimpleQueue()
    terms = Terms(first_s=0.1, beat_s=0.01, patience_s=0.02, lease_s=0.1)
    with Desk(Source("a" * 32, 1, 0, 2, terms=terms), released.put) as desk:
        for request in ("b" * 32, "c" * 32):
            desk.offer(request, [1])
            assert released.get(timeout=PATIENCE_S) == Released(request, Outcome.EXPIRED)


def test_words_that_are_lost_are_said_again() -> None:
    """The first attempts of each kind of word fail: the pull is whole nevertheless."""
    with engines((1, 1, 2), ("packed", "packed")) as each:
        request, content = each.fill(TOKENS, SRC)
        line = each.decode[0].puller._lines[0]
        inner = line.peer.ask
        lost: set[type] = set()

        def ask(say: Say, deadline: Deadline) -> Answer:
            if type(say) not in lost:
                lost.add(type(say))
                raise PeerLost("lost on the way")
            return inner(say, deadline)

        line.peer = replace(line.peer, ask=ask)
        each.pull(request, TOKENS, SRC, DST)
        assert ended(each)[0].failed == ()
        assert each.holds(each.decode[0], content, TOKENS, DST)
        assert outcomes(each) == {Outcome.DELIVERED}
        assert lost == {Open, Confirm, Done}


def test_a_reader_that_hangs_is_broken_off() -> None:
    """A server that takes the request and sends nothing: an abort need not wait for the read's deadline."""
    with engines((1, 1, 2), ("packed", "packed")) as each:
        desk = each.prefill[0].desk
        request, _ = each.fill(TOKENS, SRC)
        hanging = _hang(each)
        each.pull(request, TOKENS, SRC, DST)
        hanging()
        each.decode[0].puller.abort(request)
        assert len(ended(each)[0].failed) == LAYERS + 1
        assert outcomes(each) == {Outcome.FAILED}
        assert desk.idle


def _hang(each: Engines) -> Callable[[], None]:
    """From now on no bytes are sent; the function waits until somebody wants some."""
    asked = threading.Event()
    line = each.decode[0].puller._lines[0]

    def hang(reader):  # type: ignore[no-untyped-def]
        def read(handle, boxes, into, deadline, stop):  # type: ignore[no-untyped-def]
            channel = reader._open(deadline)
            asked.set()
            if stop():  # the abort came while this lane was still connecting
                raise Stopped("reading was stopped")
            channel.receive(deadline)  # nobody says anything
            return 0

        reader.read = read

    for reader in line.peer.readers:
        hang(reader)
    return lambda: None if asked.wait(PATIENCE_S) else pytest.fail("nobody read")
