"""Weights between engines that listen on this machine: striped, chained, resumed, and whatever goes wrong."""

from __future__ import annotations

import contextlib
import ctypes
import random
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec
import pytest

from native import _native
from tests.helpers.weights import BLOCK, LOCAL, Directory, Engine, Rank, Town, dialler
from tests.helpers.wires import TRUST, meanwhile, soon, two_ends
from transfer.errors import PeerLost, PeerViolation, TransferError
from transfer.netloader import client as client_module
from transfer.netloader import intake, pull, server, wire
from transfer.netloader.client import Client, StreamFailed
from transfer.netloader.guard import Guard, Switching
from transfer.netloader.intake import Denied
from transfer.netloader.plan import Peer
from transfer.netloader.pull import Pull
from transfer.netloader.server import Server
from transfer.netloader.shelf import Shelf
from transfer.netloader.source import Source
from transfer.netloader.work import Work
from transfer.transports.channel import Channel
from transfer.transports.deadline import Deadline
from transfer.transports.dial import dial
from transfer.transports.handshake import OPENING
from transfer.transports.outgoing import Block
from transfer.transports.pace import Slot
from transfer.transports.trust import Trust

MANY = (34 * BLOCK + 3, 100, 2 * BLOCK)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for by design, shorter; no test depends on how long it is."""
    monkeypatch.setattr(client_module, "REST_S", 0.01)
    monkeypatch.setattr(client_module, "REFRESH_S", 0.01)
    monkeypatch.setattr(client_module, "EMPTY_S", 30.0)


@pytest.fixture
def soon_given_up(hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that wait until no source is left; to others a busy machine would look the same."""
    monkeypatch.setattr(client_module, "EMPTY_S", 0.3)


Wrap = Callable[[Callable[[Channel], None]], Callable[[Channel], None]]


def before_block(number: int | None, act: Callable[[Channel], None]) -> Wrap:
    """A wrapper of a server: `act` once, just before it sends block `number`; None: before the first that it sends."""
    done = threading.Event()

    def wrap(serve: Callable[[Channel], None]) -> Callable[[Channel], None]:
        def served(channel: Channel) -> None:
            send = channel.send_run

            def send_one(blocks: Sequence[Block], *args: Any, **more: Any) -> int:
                if number in (None, blocks[0].position) and not done.is_set():
                    done.set()
                    act(channel)
                return send(blocks[:1], *args, **more)

            channel.send_run = send_one  # type: ignore[method-assign]
            serve(channel)

        return served

    return wrap


def test_one_source():
    with Town() as town:
        town.source()
        starter = town.starter()
        streamed = starter.fetch()
        assert starter.rank.content == town.original.content
        assert streamed.blocks == {"A": streamed.manifest.grid.blocks}
        assert streamed.reasons == {}


def test_several_sources_are_striped():
    """Each waits for the others with its first block: all take part."""
    together = threading.Barrier(3)
    with Town(MANY) as town:
        for name in "ABC":
            town.source(name, serve=before_block(None, lambda channel: _meet(together)))
        starter = town.starter("D")
        streamed = starter.fetch()
        assert starter.rank.content == town.original.content
        assert set(streamed.blocks) == {"A", "B", "C"}
        assert sum(streamed.blocks.values()) == streamed.manifest.grid.blocks


def _meet(barrier: threading.Barrier) -> None:
    barrier.wait(30)


def test_four_starters_pass_it_on_while_they_load():
    """The first is held in the middle until the last has the first half: so nobody waited for a whole source."""
    halfway = threading.Event()
    with Town(MANY) as town:
        town.source(serve=before_block(30, lambda channel: _expect(halfway)))
        starters = [town.starter(name) for name in "BCDE"]
        for starter in starters:
            town.directory.put(starter.peer)
        last = meanwhile(lambda: _watched(starters[-1], 16, halfway))
        others = [meanwhile(starter.fetch) for starter in starters[:-1]]
        results = [wait() for wait in [*others, last]]
        for starter in starters:
            assert starter.rank.content == town.original.content
        assert all("A" not in result.blocks for result in results[1:])


def _expect(event: threading.Event) -> None:
    assert event.wait(30)


def _watched(starter: Engine, number: int, event: threading.Event) -> object:
    work: list[Work] = []

    class Noted(Work):
        def land(self, at: int) -> None:
            super().land(at)
            work.append(self)
            if at == number:
                event.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_module, "Work", Noted)
        return starter.fetch()


# ---- sources that fail


def test_a_source_killed_in_mid_stream_is_replaced_by_another():
    with Town(MANY) as town:
        heir = town.source("B")
        town.directory.remove("B")

        def die(channel: Channel) -> None:
            town.directory.remove("A")
            town.directory.put(heir.peer)
            channel.abort()

        town.source("A", serve=before_block(20, die))
        starter = town.starter("C")
        streamed = starter.fetch()
        assert set(streamed.blocks) == {"A", "B"}
        assert starter.rank.content == town.original.content
        assert sum(streamed.blocks.values()) == streamed.manifest.grid.blocks


@pytest.mark.usefixtures("soon_given_up")
def test_no_source_is_left():
    """The engine knows that it has nothing."""
    with Town(MANY) as town:

        def die(channel: Channel) -> None:
            town.directory.remove("A")
            channel.abort()

        town.source("A", serve=before_block(20, die))
        starter = town.starter()
        with pytest.raises(StreamFailed, match=r"no source is left.*A: ") as failed:
            starter.fetch()
        assert set(failed.value.reasons) == {"A"}


@pytest.mark.usefixtures("soon_given_up")
def test_nobody_is_there():
    with Town() as town, pytest.raises(StreamFailed, match="no source is left"):
        town.starter().fetch()


def test_a_connection_that_breaks_once_costs_nothing():
    with Town(MANY) as town:
        town.source("A", serve=before_block(20, lambda channel: channel.abort()))
        starter = town.starter()
        streamed = starter.fetch()
        assert starter.rank.content == town.original.content
        assert streamed.blocks == {"A": streamed.manifest.grid.blocks}
        assert "A" in streamed.reasons


def test_a_source_that_fails_as_the_last_block_comes_is_told_of_too():
    """It ended by itself, and nobody has looked since: whoever reads what it cost learns why all the same."""
    looked, clients = threading.Event(), list[Client]()

    def fail(channel: Channel) -> None:
        _expect(looked)
        channel.abort()

    with Town(MANY) as town:
        town.source("A", serve=before_block(None, fail))
        town.source("B", serve=before_block(None, lambda channel: _expect(looked)))
        starter, looks = town.starter("C"), iter(range(100))

        def directory() -> list[Peer]:
            if next(looks) == 1:
                looked.set()
                for one in clients[0]._pulls:
                    one._thread.join(30)
                    assert not one.alive
            return town.directory()

        rank = starter.rank
        clients.append(Client(starter.peer, rank.identity, rank.addresses, directory, dialler()))
        streamed = clients[0].run(60)
        assert rank.content == town.original.content
        assert set(streamed.reasons) == {"A"}
        assert streamed.blocks == {"B": streamed.manifest.grid.blocks}


def test_a_source_that_is_cut_off_in_mid_block():
    def truncate(channel: Channel) -> None:
        channel.send_raw(b"\2\0", soon())
        channel.abort()

    with Town(MANY) as town:
        town.source("A", serve=before_block(3, truncate))
        starter = town.starter()
        starter.fetch()
        assert starter.rank.content == town.original.content


def test_a_starter_that_dies_takes_nobody_with_it():
    with Town(MANY) as town:
        town.source("A")
        dying = town.starter("B", serve=lambda serve: _fails)
        heir = town.starter("C")
        town.directory.put(dying.peer)
        heir.fetch()
        assert heir.rank.content == town.original.content


def _fails(channel: Channel) -> None:
    raise TransferError("dead")


def test_a_source_that_has_not_got_it_itself_says_later(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "LATER_S", 0.01)
    rank = Rank(seed=1)
    source = Source(rank.manifest(), rank.addresses, Work(rank.manifest().grid.blocks, 8))
    [error] = _pulled(source)
    assert isinstance(error, Denied)
    assert (error.code, error.passing) == (wire.Code.LATER, True)


def _pulled(source: Source | Shelf, rank: Rank | None = None) -> list[TransferError]:
    """What one connection ends with."""
    wanted = rank or Rank()
    with two_ends() as (one, other):
        shelf = source if isinstance(source, Shelf) else Shelf(source)
        served = meanwhile(lambda: Server(shelf).serve(other))
        pulled = Pull(
            Peer(name="A", host="", port=0),
            wanted.identity,
            wanted.addresses,
            lambda peer, deadline: one,
            lambda whole: Work(whole.grid.blocks, 8),
            lambda: None,
        )
        pulled._thread.join(30)
        one.close()
        served()
    return [pulled.error] if pulled.error else []


# ---- how long it is waited for


class Held:
    """A source that stops before it sends a block; from then on each look of its client is `step` seconds later."""

    def __init__(self, number: int | None, step: float) -> None:
        self.now, self._step = 0.0, step
        self._reached, self.go_on = threading.Event(), threading.Event()
        self.serve = before_block(number, self._hold)

    def _hold(self, channel: Channel) -> None:
        self._reached.set()
        _expect(self.go_on)

    def fetch(self, town: Town, limit_s: float, release_at: float = 1e9, first_s: float | None = None) -> Rank:
        def directory() -> list[Peer]:
            self.now += self._step if self._reached.is_set() else 0.0
            if self.now >= release_at:
                self.go_on.set()
            return town.directory()

        town.source(serve=self.serve)
        me, rank = town.starter().peer, Rank(MANY)
        client = Client(
            me, rank.identity, rank.addresses, directory, dialler(), clock=lambda: self.now, first_s=first_s
        )
        try:
            client.run(limit_s)
        finally:
            self.go_on.set()
        return rank


@pytest.mark.parametrize("first_s", [None, 500.0])
def test_a_block_that_does_not_come_for_thirty_seconds_ends_it(first_s: float | None):
    """However long the first may take."""
    with Town(MANY) as town, pytest.raises(StreamFailed, match=r"nothing came for 30 s"):
        Held(20, 1.0).fetch(town, 600.0, first_s=first_s)


@pytest.mark.parametrize(("first_s", "why"), [(None, "nothing came for 30 s"), (500.0, "nothing came for 500 s")])
def test_the_first_block_may_take_longer_where_that_is_known(first_s: float | None, why: str):
    with Town(MANY) as town, pytest.raises(StreamFailed, match=why):
        Held(None, 10.0).fetch(town, 600.0, first_s=first_s)
    with Town(MANY) as town:
        assert Held(None, 1.0).fetch(town, 600.0, 25.0, first_s).content == town.original.content


def test_a_source_that_reads_its_files_first_is_waited_for():
    with Town(MANY) as town:
        assert Held(None, 10.0).fetch(town, 600.0, 300.0, 600.0).content == town.original.content


def test_a_stream_that_takes_longer_than_its_limit_ends():
    with Town(MANY) as town, pytest.raises(StreamFailed, match="it takes too long"):
        Held(20, 1.0).fetch(town, 20.0, first_s=600.0)


# ---- identity


@pytest.mark.parametrize(("field", "value"), [("model", "another revision"), ("tp_rank", 1), ("isa", ("avx2",))])
def test_another_identity_is_named_field_by_field(field: str, value: object):
    source = Rank(seed=1)
    [error] = _pulled(Source(source.manifest(), source.addresses), Rank(**{field: value}))  # type: ignore[arg-type]
    assert isinstance(error, Denied)
    assert str(error).startswith(f"mismatch: {field}: ")


@pytest.mark.usefixtures("soon_given_up")
def test_another_revision_at_the_same_path_is_refused_and_said():
    with Town() as town:
        town.source()
        starter = Engine("B", Rank(model="edited"), town.directory, whole=False, ticket=1)
        with starter, pytest.raises(StreamFailed, match="the checkpoints differ"):
            starter.fetch()


def test_two_sources_of_other_content_are_not_mixed():
    """Equal fingerprints, other bytes: a checkpoint was edited behind its revision. Whoever is first gives nothing
    before the other was refused."""
    refused = threading.Event()

    def patient(serve: Callable[[Channel], None]) -> Callable[[Channel], None]:
        waiting = before_block(None, lambda channel: _expect(refused))(serve)

        def served(channel: Channel) -> None:
            try:
                waiting(channel)
            finally:
                refused.set()

        return served

    with Town(MANY) as town:
        town.source("A", serve=patient)
        town.enter_context(Engine("B", Rank(MANY, seed=2), town.directory, serve=patient))
        starter = town.starter("C")
        streamed = starter.fetch()
        assert starter.rank.content in (town.original.content, Rank(MANY, seed=2).content)
        assert len(streamed.blocks) == 1
        assert "content" in " ".join(streamed.reasons.values())


def test_nothing_to_serve_yet_or_any_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "LATER_S", 0.01)
    yet, any_more = Shelf(), Shelf()
    any_more.close()
    for shelf, code in ((yet, wire.Code.LATER), (any_more, wire.Code.GONE)):
        [error] = _pulled(shelf)
        assert isinstance(error, Denied)
        assert error.code is code


# ---- damage


def _carry(whence: socket.socket, where: socket.socket, at: int, bit: int) -> int:
    """Carries bytes until there are no more, and flips one bit of byte `at`; how many there were."""
    moved = 0
    with contextlib.suppress(OSError):
        while data := bytearray(whence.recv(1 << 16)):
            if 0 <= at - moved < len(data):
                data[at - moved] ^= bit
            moved += len(data)
            where.sendall(data)
    with contextlib.suppress(OSError):
        where.shutdown(socket.SHUT_WR)
    return moved


def _flipped(rank: Rank, at: int, bit: int, *, sending: bool) -> tuple[Pull, Rank, Work, int]:
    """A pull over a wire on which byte `at` of one direction is damaged, and how many bytes went that way."""
    target = Rank((900, 64, 7000))
    source = Source(rank.manifest(), rank.addresses)
    work = Work(rank.manifest().grid.blocks, 1)
    (a, near), (far, b) = socket.socketpair(), socket.socketpair()

    def serve() -> None:
        try:
            with TRUST.accept(b, wire.SERVICE, soon()) as channel:
                Server(Shelf(source)).serve(channel)
        except TransferError:
            b.close()

    served = meanwhile(serve)
    sent = meanwhile(lambda: _carry(near, far, at if sending else -1, bit))
    received = meanwhile(lambda: _carry(far, near, -1 if sending else at, bit))
    pulled = Pull(
        Peer(name="A", host="", port=0),
        target.identity,
        target.addresses,
        lambda peer, deadline: TRUST.greet(a, wire.SERVICE, deadline),
        lambda whole: work,
        lambda: None,
    )
    pulled._thread.join(60)
    a.close()
    served()
    moved = {True: sent(), False: received()}
    near.close()
    far.close()
    return pulled, target, work, moved[sending]


def test_a_thousand_flipped_bits_and_none_becomes_a_ready_model(monkeypatch: pytest.MonkeyPatch):
    """Anywhere in what is received or sent: handshake, manifest, headers, weights, requests."""
    for module, name in ((pull, "OFFER_S"), (intake, "FRAME_S"), (server, "ASK_S"), (server, "IDLE_S")):
        monkeypatch.setattr(module, name, 10.0)
    rank = Rank((900, 64, 7000), seed=1)
    sizes = {}
    for sending in (False, True):
        whole, target, _, sizes[sending] = _flipped(rank, -1, 1, sending=sending)
        assert whole.error is None
        assert target.content == rank.content
    assert sizes[False] > sum(map(len, rank.content))
    draw = random.Random(20)
    for _ in range(1000):
        sending = draw.random() < 0.3
        at, bit = draw.randrange(sizes[sending]), 1 << draw.randrange(8)
        flipped, target, work, _ = _flipped(rank, at, bit, sending=sending)
        assert flipped.error is not None, (at, bit, sending)
        assert not work.over, (at, bit, sending)
        # What did land is right.
        for number in range(3):
            assert not work.has(number) or target.content[number] == rank.content[number]


def _lied_to(answers: Callable[[Channel, Rank], None]) -> tuple[TransferError | None, Rank]:
    """What a client ends with whose source knows the key and answers so."""
    source, target = Rank(seed=1), Rank()
    with two_ends() as (one, other):
        ended = meanwhile(lambda: answers(other, source))
        pulled = Pull(
            Peer(name="A", host="", port=0),
            target.identity,
            target.addresses,
            lambda peer, deadline: one,
            lambda whole: Work(whole.grid.blocks, 8),
            lambda: None,
        )
        pulled._thread.join(30)
        ended()
    return pulled.error, target


@pytest.mark.parametrize("lie", ["another block", "another sum", "another tag", "shorter"])
def test_a_source_that_sends_something_else_than_it_offered(lie: str):
    """Each frame is whole in itself; only the manifest says that it is not what is due."""

    def answer(channel: Channel, rank: Rank) -> None:
        channel.receive(soon())
        whole = rank.manifest()
        channel.send(wire.encode(wire.Offer(whole)), soon())
        header, _ = channel.receive(soon())
        number = 1 if lie == "another block" else 0
        length = 64 if lie == "shorter" else BLOCK
        address = rank.addresses[0] + (BLOCK if lie == "another sum" else 0)
        tag = header.tag + (lie == "another tag")
        with contextlib.suppress(PeerLost):  # the client goes as soon as it has seen the header
            channel.send_data(address, length, _native.crc32c(address, length), soon(), tag=tag, position=number)

    error, target = _lied_to(answer)
    assert isinstance(error, PeerViolation)
    assert "block 0 was due" in str(error)
    assert target.content == Rank().content


def test_a_manifest_that_contradicts_itself_is_not_believed():
    def answer(channel: Channel, rank: Rank) -> None:
        channel.receive(soon())
        wrong = msgspec.structs.replace(rank.manifest(), digests=(0,) * len(rank.extents))
        channel.send(wire.encode(wire.Offer(wrong)), soon())

    error, _ = _lied_to(answer)
    assert isinstance(error, PeerViolation)
    assert "fold" in str(error)


# ---- clients that misbehave


def test_silent_slow_and_garbage_clients_do_not_harm_another():
    with Town(MANY) as town:
        source = town.source()
        with dialler()(source.peer, soon()) as silent, dialler()(source.peer, soon()) as slow:
            slow.send(wire.encode(wire.Ask(source.rank.identity)), soon())
            slow.receive(soon())
            slow.send(wire.encode(wire.Read(0, 38)), soon())  # and takes nothing
            with dialler()(source.peer, soon()) as garbage:
                garbage.send_raw(random.Random(1).randbytes(5000), soon())
                starter = town.starter()
                starter.fetch()
            assert starter.rank.content == town.original.content
            assert silent.peer
        with socket.create_connection((LOCAL, source.peer.port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n".ljust(OPENING))
            assert stranger.recv(100) == b""


def test_a_request_for_what_does_not_exist_ends_that_client_only():
    with Town() as town:
        source = town.source()
        with dialler()(source.peer, soon()) as channel:
            channel.send(wire.encode(wire.Ask(source.rank.identity)), soon())
            channel.configure(max_message=wire.MAX_MESSAGE)
            channel.receive(soon())
            channel.send(wire.encode(wire.Read(1 << 30, 64)), soon())
            answer = wire.decode_answer(channel.receive(soon())[1])
        assert isinstance(answer, wire.Refused)
        assert answer.code is wire.Code.BAD_REQUEST
        town.starter().fetch()


@pytest.mark.usefixtures("soon_given_up")
def test_a_wrong_key():
    def stranger(peer: Peer, deadline: Deadline) -> Channel:
        return dial(peer.host, peer.port, Trust(bytes(32)), wire.SERVICE, deadline)

    with Town() as town:
        town.source()
        with pytest.raises(StreamFailed, match="VNPU_TRANSFER_KEY_FILE"):
            town.starter().fetch(connect=stranger)
        town.starter("C").fetch()


# ---- switches


def test_memory_that_goes_is_refused_and_comes_back():
    guard = Guard()
    rank = Rank(seed=1)
    source = Source(rank.manifest(), rank.addresses, guard=guard)
    assert _pulled(source) == []
    assert guard.close()
    [error] = _pulled(source)
    assert isinstance(error, Denied)
    assert (error.code, error.passing) == (wire.Code.SWITCHING, True)
    with pytest.raises(Switching), guard.reading(lambda: None):
        pass
    guard.open()
    assert guard.generation == 1
    assert _pulled(source) == []


class Switch:
    """An engine's memory, or some of it, is overwritten while it is away, and lies elsewhere when it is back.

    It begins while a block is about to be sent, and that block waits for it: as long as it must where nobody keeps the
    memory from going, so that it is then torn for certain.
    """

    def __init__(self) -> None:
        self.guard = Guard()
        self.over = threading.Event()
        self.places: list[tuple[int, int]] = []
        """Address and length of what goes."""
        self._kept: dict[int, bytes] = {}
        self._gone = threading.Event()

    def begin(self, channel: Channel) -> None:
        threading.Thread(target=self._switch, daemon=True).start()
        while self.guard._open and not self._gone.wait(0.001):
            pass
        self._gone.wait(0.05)

    def _switch(self) -> None:
        assert self.guard.close(grace_s=30)
        for address, length in self.places:
            self._kept[address] = ctypes.string_at(address, length)
            ctypes.memset(address, 0xA5, length)
        self._gone.set()
        self.guard.open()
        self.over.set()

    def locate(self, address: int) -> int:
        for start, length in self.places if self._gone.is_set() else ():
            if start <= address < start + length:
                return ctypes.cast(self._kept[start], ctypes.c_void_p).value + address - start  # type: ignore[operator]
        return address

    def undo(self) -> None:
        for address, kept in self._kept.items():
            ctypes.memmove(address, kept, len(kept))


def test_a_source_switched_in_mid_stream_is_never_torn():
    """Nothing arrives that would have to be sent again, and whatever arrived is right."""
    switch = Switch()
    with Town(MANY) as town:
        source = town.source(guard=switch.guard, locate=switch.locate, serve=before_block(10, switch.begin))
        switch.places = list(zip(source.rank.addresses, MANY, strict=True))
        starter = town.starter()
        streamed = starter.fetch()
        assert switch.over.wait(30)
        assert "damaged" not in " ".join(streamed.reasons.values())
        assert starter.rank.content == town.original.content


def test_a_client_that_takes_nothing_does_not_hold_up_a_switch():
    guard, inside = Guard(), threading.Event()
    with two_ends() as (one, other):
        rank = Rank((8 * BLOCK,), seed=1)
        source = Source(rank.manifest(), rank.addresses, guard=guard)
        served = meanwhile(lambda: Server(Shelf(source)).serve(other))
        one.configure(max_message=wire.MAX_MESSAGE)
        one.send(wire.encode(wire.Ask(rank.identity)), soon())
        one.receive(soon())
        one.send(wire.encode(wire.Read(0, 8)), soon())
        one.head(soon())  # it is sending, and the socket's buffers are smaller than this
        inside.set()
        assert guard.close(grace_s=0.05)
        with pytest.raises(TransferError):
            served()


def test_both_sides_switched_midway():
    """A starter that others fetch from is switched too, with what it has by then: its reader goes on elsewhere."""
    first, second = Switch(), Switch()
    with Town(MANY) as town:
        source = town.source("A", guard=first.guard, locate=first.locate, serve=before_block(10, first.begin))
        first.places = list(zip(source.rank.addresses, MANY, strict=True))
        middle = town.starter("B", guard=second.guard, locate=second.locate, serve=before_block(12, second.begin))
        second.places = [(middle.rank.addresses[0], 13 * BLOCK)]
        end = town.starter("C")
        town.directory.put(middle.peer)
        last = meanwhile(end.fetch)
        streamed = [middle.fetch(), last()]
        for switch in (first, second):
            assert switch.over.wait(30)
        assert all("damaged" not in reason for one in streamed for reason in one.reasons.values())
        assert end.rank.content == town.original.content
        second.undo()
        assert middle.rank.content == town.original.content


def test_a_source_is_read_under_its_limit():
    asked: list[int] = []

    class Counting:
        def wait(self, size: int) -> None:
            asked.append(size)

        def book(self, sizes: Sequence[int]) -> Slot:
            asked.append(sum(sizes[:2]))
            return Slot(min(2, len(sizes)))

    with Town() as town:
        town.source(pace=Counting())
        town.starter().fetch()
    assert sum(asked) == sum(town.lengths)


def test_a_switch_ends_a_run_between_two_blocks():
    """It does not wait for the rest of what the limit holds back."""
    guard, booked = Guard(), threading.Event()

    class Slow:
        """The second block of the first run is due in twelve days."""

        def wait(self, size: int) -> None:
            raise AssertionError("it is booked")

        def book(self, sizes: Sequence[int]) -> Slot:
            first = not booked.is_set()
            booked.set()
            return Slot(len(sizes), 0.0, 1.0 if first else 0.0)

    with Town() as town:
        town.source(pace=Slow(), guard=guard)
        starter = town.starter()
        fetching = meanwhile(starter.fetch)
        assert booked.wait(30)
        closing = meanwhile(lambda: guard.close(grace_s=3600))
        assert closing()
        guard.open()
        assert fetching().manifest.grid.blocks
        assert starter.rank.content == town.original.content


def test_a_guard_waits_for_who_is_inside():
    guard, out = Guard(), threading.Event()
    with guard.reading(out.set):
        closing = meanwhile(lambda: guard.close(grace_s=0.01))
        assert out.wait(30)  # told to break off
    assert closing()
    guard = Guard()
    with guard.reading(lambda: None):
        assert not guard.close(grace_s=0.01, limit_s=0.01)


def test_who_waits_is_not_turned_away_because_it_is_closed_again():
    class Restless(Guard):
        """Closed whenever somebody is about to go in, and opened a moment later."""

        def reading(self, abort: Callable[[], None], within_s: float = 0.0) -> AbstractContextManager[int]:
            assert self.close()
            threading.Timer(0.01, self.open).start()
            return super().reading(abort, within_s)

    with Restless().waiting() as generation:
        assert generation == 1


def test_a_directory_is_a_callable():
    peer = Peer(name="A", host="", port=1)
    assert Directory(peer)() == [peer]
