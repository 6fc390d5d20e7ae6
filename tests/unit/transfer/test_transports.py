"""One contract for every way that bytes take between processes."""

from __future__ import annotations

import ctypes
import os
import random
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest

from native import _native
from tests.helpers.transports import SIZE, TRANSPORTS, Ends
from tests.helpers.wires import meanwhile, soon
from transfer.errors import Corrupt, PeerLost, PeerViolation, TransferError
from transfer.netloader import ways, wire
from transfer.netloader.wire import Meet
from transfer.transports import collective
from transfer.transports.channel import Channel
from transfer.transports.collective import KEYS, Meeting, Put, Side, join
from transfer.transports.deadline import Deadline
from transfer.transports.frame import MAX_BODY, Kind
from transfer.transports.window import Window

NOISE = random.Random(7).randbytes(SIZE)
BLOCK = 1 << 20


@pytest.fixture(params=sorted(TRANSPORTS))
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    with TRANSPORTS[request.param]() as ends:
        ctypes.memmove(ends.memory, NOISE, SIZE)
        yield ends


class Target:
    def __init__(self, size: int = SIZE) -> None:
        self.held = ctypes.create_string_buffer(b"\xa5" * size, size)
        self.address = ctypes.addressof(self.held)

    def __bytes__(self) -> bytes:
        return bytes(self.held.raw)


SCRAP = Target()
"""For what must not be looked at; lives as long as anybody may write to it."""


def give(ends: Ends, at: int, length: int, position: int = 0, tag: int = 0, flip: int = 0) -> None:
    total = _native.crc32c(ends.memory + at, length) ^ flip
    ends.source.send_data(ends.memory + at, length, total, soon(), tag=tag, position=position)


@pytest.mark.parametrize("size", [0, 1, 4095, BLOCK, SIZE - 5])
def test_bytes_land_at_their_place_and_nowhere_else(ends: Ends, size: int):
    target = Target(size + 1)
    giving = meanwhile(lambda: give(ends, 3, size, position=9, tag=4))
    header = ends.starter.head(soon())
    ends.starter.into(header, target.address, soon())
    giving()
    assert bytes(target) == NOISE[3 : 3 + size] + b"\xa5"
    assert (header.tag, header.position, header.length) == (4, 9, size)
    assert (ends.source.sent, ends.starter.received) == (size, size)


def test_many_in_order_with_words_between(ends: Ends):
    draw = random.Random(3)
    pieces = [(draw.randrange(SIZE - 70_000), draw.randrange(1, 70_000)) for _ in range(60)]

    def serve() -> None:
        for number, (at, length) in enumerate(pieces):
            if number % 7 == 0:
                ends.source.send(b"word", soon(), tag=number)
            give(ends, at, length, position=number)

    serving = meanwhile(serve)
    target, number = Target(), 0
    while number < len(pieces):
        header = ends.starter.head(soon())
        if header.kind is Kind.MESSAGE:
            assert (ends.starter.body(header, soon()), header.tag) == (b"word", number)
            continue
        at, length = pieces[number]
        assert header.position == number
        ends.starter.into(header, target.address, soon())
        assert bytes(target)[:length] == NOISE[at : at + length]
        number += 1
    serving()


def test_a_wrong_sum_is_noticed(ends: Ends):
    giving = meanwhile(lambda: give(ends, 0, BLOCK, flip=1))
    with pytest.raises(Corrupt):
        ends.starter.into(ends.starter.head(soon()), SCRAP.address, soon())
    giving()


def test_who_says_nothing_is_waited_for_until_the_deadline(ends: Ends):
    with pytest.raises(PeerLost):
        ends.starter.head(Deadline.after(0.05))


def test_who_takes_nothing_is_waited_for_until_the_deadline_or_not_at_all(ends: Ends):
    """A way that needs the taker's part fails in time; afterwards nothing hangs."""
    try:
        for _ in range(64):
            ends.source.send_data(ends.memory, BLOCK, 0, Deadline.after(0.3))
    except PeerLost:
        pass
    ends.source.abort()


def test_a_peer_that_goes_ends_the_wait(ends: Ends):
    waiting = meanwhile(lambda: ends.starter.head(soon()))
    ends.source.close()
    with pytest.raises(PeerLost):
        waiting()


def test_a_source_that_dies_after_its_word(ends: Ends):
    """It announces a block and is gone before, or after, its bytes are: never is the block taken for whole."""
    dying = threading.Event()
    if ends.source._giver is not None:
        ends.source._giver.push = lambda *_: dying.set()  # type: ignore[method-assign]
    give(ends, 0, 100)
    ends.source.close()
    target = Target()
    try:
        ends.starter.into(ends.starter.head(soon()), target.address, soon())
    except TransferError:
        return
    assert bytes(target)[:100] == NOISE[:100]


def test_breaking_it_off_frees_who_waits(ends: Ends):
    begun = threading.Event()

    def receive() -> None:
        begun.set()
        header = ends.starter.head(soon())
        ends.starter.into(header, SCRAP.address, soon())
        ends.starter.head(soon())

    receiving = meanwhile(receive)
    giving = meanwhile(lambda: give(ends, 0, BLOCK))
    giving()
    assert begun.wait(30)
    ends.starter.abort()
    with pytest.raises(PeerLost):
        receiving()


def test_closing_twice_and_breaking_off_what_is_closed(ends: Ends):
    for channel in (ends.source, ends.starter):
        channel.close()
        channel.abort()
        channel.close()


# ---- what is special to one of them


def test_aside_without_an_agreement_is_refused():
    with TRANSPORTS["mapped"]() as ends:
        ends.starter.carry()
        give(ends, 0, 10)
        with pytest.raises(PeerViolation, match="no way"):
            ends.starter.into(ends.starter.head(soon()), SCRAP.address, soon())


@pytest.mark.parametrize("place", [SIZE, SIZE - 4096, (1 << 64) - 1])
def test_a_place_outside_the_window_is_not_read(place: int):
    with TRANSPORTS["mapped"]() as ends:
        ends.source._giver.place = lambda *_: place  # type: ignore[union-attr, method-assign]
        give(ends, 0, 4097)
        with pytest.raises(PeerViolation, match="window"):
            ends.starter.into(ends.starter.head(soon()), SCRAP.address, soon())


def test_what_is_not_lent_goes_through_the_connection():
    with TRANSPORTS["mapped"]() as ends:
        ctypes.memmove(ends.memory, NOISE, SIZE)
        kinds = []
        target = Target()
        for at in (0, SIZE - 4096):
            give(ends, at, 4096)
            header = ends.starter.head(soon())
            kinds.append(header.kind)
            ends.starter.into(header, target.address, soon())
            assert bytes(target)[:4096] == NOISE[at : at + 4096]
        assert kinds == [Kind.ASIDE, Kind.DATA]


def test_what_is_held_back_leaves_with_what_follows_or_when_told_to():
    with TRANSPORTS["mapped"]() as ends:
        ctypes.memmove(ends.memory, NOISE, SIZE)
        target, follow = Target(), [lambda: ends.source.send(b"word", soon()), lambda: give(ends, SIZE - 4096, 4096)]
        for following in (*follow, lambda: ends.source.flush(soon())):
            for at in (0, 8192):
                total = _native.crc32c(ends.memory + at, 100)
                ends.source.send_data(ends.memory + at, 100, total, soon(), position=at, more=True)
            following()
            for at in (0, 8192):
                header = ends.starter.head(soon())
                assert (header.kind, header.position) == (Kind.ASIDE, at)
                ends.starter.into(header, target.address, soon())
                assert bytes(target)[:100] == NOISE[at : at + 100]
            if following is follow[0]:
                assert ends.starter.receive(soon())[1] == b"word"
            elif following is follow[1]:
                ends.starter.into(ends.starter.head(soon()), target.address, soon())
                assert bytes(target)[:4096] == NOISE[SIZE - 4096 :]


def test_memory_that_was_let_go_of_is_not_read():
    with TRANSPORTS["mapped"]() as ends:
        told: list[str] = []
        descriptor = os.memfd_create("again")
        try:
            os.ftruncate(descriptor, SIZE)
            window = Window([(descriptor, SIZE)], lambda: told.append("closed"))
        finally:
            os.close(descriptor)
        ends.starter.carry(taker=window)
        window.close()
        window.close()
        assert told == ["closed"]
        give(ends, 0, 10)
        with pytest.raises(PeerLost, match="took its memory back"):
            ends.starter.into(ends.starter.head(soon()), SCRAP.address, soon())


def test_a_descriptor_that_cannot_be_mapped_leaves_nothing():
    with pytest.raises(TransferError, match="cannot be mapped"):
        Window([(-1, 4096)])


def test_a_hand_over_out_of_turn_is_refused():
    with TRANSPORTS["paired"]() as ends:
        ends.source._giver.place = lambda *_: 5  # type: ignore[union-attr, method-assign]
        giving = meanwhile(lambda: give(ends, 0, 10))
        with pytest.raises(PeerViolation, match="hand-over 5"):
            ends.starter.into(ends.starter.head(soon()), SCRAP.address, soon())
        ends.starter.abort()
        ends.source.abort()
        with pytest.raises(PeerLost):
            giving()


def test_memory_may_go_while_the_other_side_takes_nothing():
    """Whoever is broken off is free at once; what is under way reads the pair's own stage, and nothing of the pair is
    left once it ends."""
    with TRANSPORTS["paired"]() as ends:
        pair = ends.source._giver
        assert pair is not None
        much = ctypes.create_string_buffer(MAX_BODY)  # more than sockets take without a reader
        giving = meanwhile(lambda: ends.source.send_data(ctypes.addressof(much), len(much), 0, soon()))
        ends.starter.head(soon())
        while not pair._asked:  # type: ignore[attr-defined]  # from then on its bytes are under way
            time.sleep(0.001)
        ends.source.abort()
        with pytest.raises(PeerLost):
            giving()
        with pytest.raises(PeerLost, match="broken"):
            pair.push(ends.memory, 10, soon())
        assert pair._thread.is_alive()  # type: ignore[attr-defined]
        ends.starter.close()
        pair._thread.join(30)  # type: ignore[attr-defined]
        assert not pair._thread.is_alive()  # type: ignore[attr-defined]
        assert pair._group is None  # type: ignore[attr-defined]


def test_a_pair_that_is_closed_leaves_no_thread():
    with TRANSPORTS["paired"]() as ends:
        pair = ends.starter._taker
        assert pair is not None
        ends.starter.close()
        assert not pair._thread.is_alive()  # type: ignore[attr-defined]
        assert pair._group is None  # type: ignore[attr-defined]


def test_who_cannot_join_tells_the_other():
    with TRANSPORTS["tcp"]() as ends:
        joining = meanwhile(lambda: join(ends.source, Side.SOURCE, soon()))
        with pytest.raises(TransferError, match="no backend"):
            join(ends.starter, Side.STARTER, soon(), backend="smoke signals")
        with pytest.raises(TransferError, match="no backend"):
            joining()


@pytest.mark.parametrize(("backend", "device"), [("nccl", "cuda:0"), ("hccl", "npu:0")])
def test_a_backend_that_this_torch_lacks_is_named(backend: str, device: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(collective.dist, "ProcessGroupNCCL", raising=False)
    with TRANSPORTS["tcp"]() as ends, pytest.raises(TransferError, match=f"no {backend}"):
        join(ends.source, Side.SOURCE, soon(), backend=backend, device=device)


def test_a_backend_that_does_not_reach_the_device_is_refused():
    with TRANSPORTS["tcp"]() as ends, pytest.raises(TransferError, match="'gloo' for tensors on 'cuda:0'"):
        join(ends.source, Side.SOURCE, soon(), backend="gloo", device="cuda:0")


def test_a_device_without_backend_is_named():
    with TRANSPORTS["tcp"]() as ends, pytest.raises(TransferError, match="no backend for tensors on 'xpu:0'"):
        ways.meet(ends.starter, "xpu:0")


@pytest.mark.parametrize(("kind", "backend"), [("cpu", "gloo"), ("cuda", "nccl"), ("npu", "hccl")])
def test_both_sides_join_with_the_backend_of_their_device(
    kind: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = []

    def instead(channel: Channel, side: Side, deadline: Deadline, *, backend: str, device: str) -> None:
        joined.append((side, backend, device))

    monkeypatch.setattr(collective, "join", instead)
    with TRANSPORTS["tcp"]() as ends:
        assert ways.meet(ends.starter, f"{kind}:1") == backend
        _, asked = ends.source.receive(soon())
        assert wire.decode_request(asked) == Meet(backend)
        ways.be_met(ends.source, Meet(backend), f"{kind}:0")
    assert joined == [(Side.STARTER, backend, f"{kind}:1"), (Side.SOURCE, backend, f"{kind}:0")]


def test_nobody_joins():
    with TRANSPORTS["tcp"]() as ends, pytest.raises(TransferError):
        join(ends.source, Side.SOURCE, Deadline.after(0.3))


def test_a_peer_that_dies_while_they_meet():
    with TRANSPORTS["tcp"]() as ends:
        joining = meanwhile(lambda: join(ends.source, Side.SOURCE, soon()))
        ends.starter.receive(soon())  # it has begun
        ends.starter.close()
        with pytest.raises(TransferError):
            joining()


def test_keys_without_end_are_refused():
    with TRANSPORTS["tcp"]() as ends:
        meeting = Meeting(ends.source, soon())
        for n in range(KEYS + 1):
            ends.starter.send(msgspec.msgpack.encode(Put(str(n), b"")), soon())
        with pytest.raises(PeerViolation, match="keys"):
            meeting.wait(["never"])


def test_words_that_do_not_belong_here_are_refused():
    with TRANSPORTS["tcp"]() as ends:
        ends.starter.send(b"\xc1", soon())
        with pytest.raises(PeerViolation, match="while two processes meet"):
            Meeting(ends.source, soon()).get("a")
