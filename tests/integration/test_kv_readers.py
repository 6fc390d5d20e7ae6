"""What every transport promises (`transfer.kv.reader.Reader`): one suite for all of them."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from tests.helpers.kv import Cache, pulls
from tests.helpers.kv_peers import EACH, HANDLE, PEERS, Peer, PlayedEngine, mapped_peer, mooncake_peer, refuse, tcp_peer
from tests.helpers.memory import buffer, read
from tests.helpers.wires import TRUST, meanwhile, soon
from transfer.errors import Corrupt, PeerLost, PeerViolation
from transfer.kv.boxes import Box, Dim, boxes, runs
from transfer.kv.copies import Copies
from transfer.kv.mapped import MappedReader, Part
from transfer.kv.messages import Confirm, Refused
from transfer.kv.mooncake import LONG, STAGE, Engine, pieces
from transfer.kv.plan import plan_pull
from transfer.kv.reader import CHUNK, ReadRefused, Span, Stopped
from transfer.kv.tcp import RECENT, SERVICE, KvServer, Rowsets, TcpReader
from transfer.transports.channel import MAX_MESSAGE, Channel
from transfer.transports.deadline import Deadline
from transfer.transports.dial import dial
from transfer.transports.frame import HEADER, Header, Kind, checksum, encode
from transfer.transports.listener import Listener
from transfer.transports.pace import Slot
from transfer.transports.window import Window

Case = tuple[Cache, Cache, list[int], list[int], tuple[int, int, int, int], int]
SIZE = 3 * CHUNK + 1000
NOISE = random.Random(5).randbytes(SIZE)


def never() -> bool:
    return False


@pytest.fixture(params=EACH)
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    with PEERS[request.param](SIZE) as made:
        made.memory[:] = NOISE
        yield made


@contextmanager
def target(size: int = SIZE) -> Iterator[Span]:
    with buffer(size) as address:
        yield Span(address, size)


@pytest.mark.parametrize("kind", EACH)
def test_every_kind_of_pull(kind: str) -> None:
    """Random layouts, sizes and block tables: the bytes that the boxes name arrive, and no others change."""
    with PEERS[kind](1 << 16) as peer:
        _every_kind_of_pull(peer)


def _every_kind_of_pull(peer: Peer) -> None:
    @settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
    @given(pulls())
    def check(case: Case) -> None:
        src, dst, src_ids, dst_ids, sizes, units = case
        content = random.Random(units).randbytes(src.layout.extent)
        peer.memory[: len(content)] = content
        with target(dst.layout.extent) as into:
            expected = np.zeros(into.size, dtype=np.uint8)
            for pull in plan_pull(*sizes[:3], units, sizes[3]):
                copies = boxes(pull, src.layout, dst.layout, src_ids, dst_ids)
                _play(copies, expected, content)
                moved = peer.reader.read(HANDLE, copies, into, soon(), never)
                assert moved == sum(box.bytes for box in copies)
            assert read(into.address, into.size) == expected.tobytes()

    check()


def _play(copies: list[Box], to: np.ndarray, content: bytes) -> None:  # type: ignore[type-arg]
    whence = np.frombuffer(content, dtype=np.uint8)
    for box in copies:
        dst, src = np.array([box.dst]), np.array([box.src])
        for dim in (*box.dims, Dim(box.length, 1, 1)):
            steps = np.arange(dim.steps)
            dst = (dst[:, None] + steps * dim.dst_stride).ravel()
            src = (src[:, None] + steps * dim.src_stride).ravel()
        to[dst] = whence[src]


def test_more_than_a_chunk_in_rows_and_in_one_piece(peer: Peer) -> None:
    rows = Box(0, 0, 512, (Dim(SIZE // 1024, 512, 1024),))
    whole = Box(0, 0, SIZE, ())
    with target() as into:
        assert peer.reader.read(HANDLE, [rows], into, soon(), never) == rows.bytes
        expected = b"".join(NOISE[at : at + 512] for at in range(0, SIZE // 1024 * 1024, 1024))
        assert read(into.address, rows.bytes) == expected
        assert peer.reader.read(HANDLE, [whole], into, soon(), never) == SIZE
        assert read(into.address, SIZE) == NOISE
        assert peer.reader.read(HANDLE, [], into, soon(), never) == 0


@pytest.mark.parametrize(
    ("handle", "box", "reason"),
    [
        (HANDLE + 1, Box(0, 0, 1, ()), "region 6"),
        (HANDLE, Box(0, SIZE - 5, 6, ()), "leaves region 5"),
        (HANDLE, Box(0, 0, 6, (Dim(2, 6, SIZE - 5),)), "leaves region 5"),
        (HANDLE, Box(0, 0, 6, (Dim(SIZE // 4, 0, 0),)), "more than"),
    ],
)
def test_what_is_not_there_is_refused_and_the_reader_lives_on(peer: Peer, handle: int, box: Box, reason: str) -> None:
    with target() as into:
        with pytest.raises(ReadRefused, match=reason):
            peer.reader.read(handle, [box], into, soon(), never)
        assert read(into.address, SIZE) == bytes(SIZE)
        assert peer.reader.read(HANDLE, [Box(3, 7, 9, ())], into, soon(), never) == 9
        assert read(into.address + 3, 9) == NOISE[7:16]


def test_a_place_outside_of_the_target_is_an_error_of_ours(peer: Peer) -> None:
    with target(100) as into, pytest.raises(ValueError, match="leaves the 100 bytes"):
        peer.reader.read(HANDLE, [Box(0, 0, 50, (Dim(2, 51, 50),))], into, soon(), never)


def test_stopped_and_used_again(peer: Peer) -> None:
    with target() as into:
        with pytest.raises(Stopped):
            peer.reader.read(HANDLE, [Box(0, 0, SIZE, ())], into, soon(), lambda: True)
        assert peer.reader.read(HANDLE, [Box(0, 0, SIZE, ())], into, soon(), never) == SIZE
        assert read(into.address, SIZE) == NOISE


def test_a_deadline_that_has_passed(peer: Peer) -> None:
    with target() as into:
        with pytest.raises(PeerLost, match="in time"):
            peer.reader.read(HANDLE, [Box(0, 0, SIZE, ())], into, Deadline.after(-1), never)
        assert peer.reader.read(HANDLE, [Box(0, 0, 5, ())], into, soon(), never) == 5


def test_an_abort_that_came_too_late_does_not_meet_the_next_read(peer: Peer) -> None:
    with target() as into:
        for _ in range(2):
            assert peer.reader.read(HANDLE, [Box(0, 0, SIZE, ())], into, soon(), never) == SIZE
            peer.reader.abort()


def test_closing_twice(peer: Peer) -> None:
    peer.reader.close()
    peer.reader.close()


# ---- what only a connection can do


def test_stopped_midway_and_used_again() -> None:
    """What was still on its way does not come to the next read."""
    looks = iter([False, True])
    with tcp_peer(SIZE) as peer, target() as into:
        peer.memory[:] = NOISE
        with pytest.raises(Stopped):
            peer.reader.read(HANDLE, [Box(0, 0, SIZE, ())], into, soon(), lambda: next(looks))
        assert peer.reader.read(HANDLE, [Box(0, 0, SIZE, ())], into, soon(), never) == SIZE
        assert read(into.address, SIZE) == NOISE


def test_a_source_that_hung_up_between_two_reads_is_connected_to_anew() -> None:
    """It takes who says nothing for two minutes to be gone; a pull may come later than that."""
    with tcp_peer(SIZE) as peer, target() as into:
        peer.memory[:] = NOISE
        assert isinstance(peer.reader, TcpReader)
        assert peer.restart is not None
        for _ in range(2):
            assert peer.reader.read(HANDLE, [Box(0, 0, SIZE, ())], into, soon(), never) == SIZE
            assert read(into.address, SIZE) == NOISE
            peer.restart()
            assert isinstance(peer.reader.ask(Confirm("0" * 32, "a" * 32, 3), soon()), Refused)
            peer.restart()


def test_a_peer_that_dies_in_a_read_and_comes_back() -> None:
    lives: list[Channel] = []
    with target() as source, target() as into:
        server = KvServer({HANDLE: source}, refuse)

        def serve(channel: Channel) -> None:
            lives.append(channel)
            if len(lives) == 1:
                channel.receive(soon())
            else:
                server.serve(channel)

        with Listener("127.0.0.1", 0, TRUST, SERVICE, serve) as listener:
            reader = TcpReader(lambda deadline: dial("127.0.0.1", listener.port, TRUST, SERVICE, deadline))
            with pytest.raises(PeerLost):
                reader.read(HANDLE, [Box(0, 0, SIZE, ())], into, soon(), never)
            assert reader.read(HANDLE, [Box(0, 0, SIZE, ())], into, soon(), never) == SIZE
            reader.close()


def test_many_readers_of_one_server() -> None:
    """Each on its own thread and connection, rows and whole."""
    with tcp_peer(SIZE) as peer:
        peer.memory[:] = NOISE
        assert isinstance(peer.reader, TcpReader)
        connect = peer.reader._connect

        def one(step: int) -> bytes:
            reader = TcpReader(connect)
            with target() as into:
                for _ in range(5):
                    box = Box(0, 0, 64, (Dim(SIZE // 64 // step, 64, 64 * step),))
                    reader.read(HANDLE, [box], into, soon(), never)
                reader.close()
                return read(into.address, box.bytes)

        results = [(step, meanwhile(lambda step=step: one(step))) for step in (1, 2, 3, 4)]  # type: ignore[misc]
        for step, result in results:
            rows = range(0, SIZE // 64 // step * 64 * step, 64 * step)
            assert result() == b"".join(NOISE[at : at + 64] for at in rows)


def test_bytes_are_sent_under_the_rate_limit() -> None:
    waited: list[int] = []

    class Pace:
        free = False

        def wait(self, size: int) -> None:
            waited.append(size)

        def book(self, sizes: Sequence[int]) -> Slot:
            raise AssertionError("KV is not booked")

    with target() as source, target() as into:
        server = KvServer({HANDLE: source}, refuse)
        with Listener("127.0.0.1", 0, TRUST, SERVICE, server.serve, pace=Pace()) as listener:
            reader = TcpReader(lambda deadline: dial("127.0.0.1", listener.port, TRUST, SERVICE, deadline))
            reader.read(HANDLE, [Box(0, 0, SIZE, ())], into, soon(), never)
            reader.close()
    assert sum(waited) == SIZE


def test_the_session_goes_over_the_same_service() -> None:
    with tcp_peer(SIZE) as peer:
        assert isinstance(peer.reader, TcpReader)
        answer = peer.reader.ask(Confirm("0" * 32, "a" * 32, 3), soon())
        assert answer == Refused("0" * 32, 3, "no session here")


def test_reads_by_many_rows_in_turns_bring_what_each_asked_for() -> None:
    """More than either side remembers; boxes that were freed meanwhile are not taken for others."""
    with tcp_peer(SIZE) as made, target() as into:
        made.memory[:] = NOISE
        kept = [Copies([Box(0, start, 64, (Dim(5, 64, 128),))]) for start in range(2 * RECENT)]
        for copies in (*kept, *reversed(kept), *kept[:3] * 2):
            made.reader.read(HANDLE, copies, into, soon(), never)
            start = copies[0].src
            assert read(into.address, 320) == b"".join(NOISE[start + 128 * row :][:64] for row in range(5))


def test_rows_that_were_asked_for_lately_are_remembered_up_to_a_bound() -> None:
    def raw(start: int, rows: int = 1) -> msgspec.Raw:
        return msgspec.Raw(msgspec.msgpack.encode([(start, 64, [])] * rows))

    rowsets = Rowsets()
    first = rowsets.copies(raw(0))
    for start in range(1, RECENT):
        rowsets.copies(raw(start))
        assert rowsets.copies(raw(0)) is first
    rowsets.copies(raw(RECENT))
    assert rowsets.copies(raw(0)) is first  # used last but one
    for start in range(1, RECENT + 1):
        rowsets.copies(raw(start))
    assert rowsets.copies(raw(0)) is not first
    many, more = raw(1 << 40, 1 << 16), raw(1 << 41, 1 << 16)
    assert len(bytes(many)) < MAX_MESSAGE < len(bytes(many)) + len(bytes(more))
    before = rowsets.copies(many)
    assert rowsets.copies(more) is rowsets.copies(more)
    assert rowsets.copies(many) is not before


@pytest.mark.parametrize("at", [5, HEADER + 100, HEADER + CHUNK + 17, HEADER + CHUNK + HEADER + 3])
def test_damaged_bytes_are_noticed(at: int) -> None:
    """In a header and a body, of the first chunk and of the second."""
    stream = b""
    for position in (0, CHUNK):
        body = NOISE[position : position + CHUNK]
        stream += encode(Header(Kind.DATA, 0, CHUNK, position, checksum(body))) + body

    def serve(channel: Channel) -> None:
        channel.receive(soon())
        channel.send_raw(stream[:at] + bytes([stream[at] ^ 0x10]) + stream[at + 1 :], soon())
        with suppress(PeerLost):
            channel.receive(soon())

    rows = Box(0, 0, CHUNK // 2, (Dim(4, CHUNK // 2, CHUNK // 2),))
    staged = [Box(0, 0, length, (Dim(2 * CHUNK // length, length + length * 3 // 8, length),)) for length in (512, 128)]
    for box in (rows, Box(0, 0, 2 * CHUNK, ()), *staged):
        with Listener("127.0.0.1", 0, TRUST, SERVICE, serve) as listener, target() as into:
            reader = TcpReader(lambda deadline, port=listener.port: dial("127.0.0.1", port, TRUST, SERVICE, deadline))  # type: ignore[misc]
            with pytest.raises(Corrupt):
                reader.read(HANDLE, [box], into, soon(), never)


@pytest.mark.parametrize("body", [b"", b"\xc0", b"garbage", b"\x82\xa4type\xa4Read\xa6handle\x05"])
def test_requests_that_are_none_end_only_that_client(body: bytes) -> None:
    with tcp_peer(SIZE) as peer, target() as into:
        assert isinstance(peer.reader, TcpReader)
        with peer.reader._connect(soon()) as channel:
            channel.send(body, soon())
            with pytest.raises(PeerLost):
                channel.receive(soon())
        assert peer.reader.read(HANDLE, [Box(0, 0, 5, ())], into, soon(), never) == 5


@pytest.mark.parametrize("reply", ["message", "short", "elsewhere"])
def test_a_server_that_keeps_to_nothing(reply: str) -> None:
    def serve(channel: Channel) -> None:
        channel.receive(soon())
        size, position = (10, 0) if reply == "short" else (64, 9)
        with buffer(64) as address:
            if reply == "message":
                channel.send(b"\xc0", soon())
            else:
                channel.send_data(address, size, checksum(bytes(size)), soon(), position=position)

    with Listener("127.0.0.1", 0, TRUST, SERVICE, serve) as listener, target() as into:
        reader = TcpReader(lambda deadline: dial("127.0.0.1", listener.port, TRUST, SERVICE, deadline))
        with pytest.raises(PeerViolation, match="due"):
            reader.read(HANDLE, [Box(0, 0, 64, ())], into, soon(), never)
        reader.close()


# ---- slices


@given(pulls())
def test_slices_are_the_boxes(case: Case) -> None:
    """What is read contiguously, and placed from there, is what the boxes say: by the bytes."""
    src, dst, src_ids, dst_ids, sizes, units = case
    for pull in plan_pull(*sizes[:3], units, sizes[3]):
        copies = boxes(pull, src.layout, dst.layout, src_ids, dst_ids)
        landed = []
        for piece in pieces(copies):
            assert piece.src + piece.length <= src.layout.extent
            rows = piece.rows or (Box(piece.dst, 0, piece.length, ()),)
            landed += [run._replace(src=run.src + piece.src) for run in runs(rows)]
        assert runs(Box(run.dst, run.src, run.length, ()) for run in landed) == runs(copies)


def test_four_loops_that_fit_are_staged_at_once(peer: Peer) -> None:
    """As many as a box may have."""
    dims = (Dim(2, 8, 4), Dim(2, 4, 8), Dim(2, 2, 1), Dim(2, 1, 2))
    with target(16) as into:
        assert peer.reader.read(HANDLE, [Box(0, 0, 1, dims)], into, soon(), never) == 16
        expected = np.zeros(16, dtype=np.uint8)
        _play([Box(0, 0, 1, dims)], expected, NOISE)
        assert read(into.address, 16) == expected.tobytes()


def test_short_rows_are_staged_and_long_ones_are_not() -> None:
    """4 → 2 of 32,000 tokens, tokens first: 65,537 rows of 512 bytes a plane are reads of a stage's size."""
    rows = [Box(0, 0, 512, (Dim(65537, 1024, 512),))]
    assert [piece.length for piece in pieces(rows)] == [STAGE] * 4 + [512]
    long = list(pieces([Box(0, 0, LONG, (Dim(100, 2 * LONG, LONG),))]))
    assert [(piece.length, piece.rows) for piece in long] == [(LONG, ())] * 100
    wide = list(pieces([Box(0, 0, 100, (Dim(10, 100, 1 << 20),))]))
    assert [(piece.length, piece.rows) for piece in wide] == [(100, ())] * 10
    assert [piece.length for piece in pieces([Box(0, 0, 2 * STAGE + 5, ())])] == [STAGE, STAGE, 5]


def test_batches_are_small_and_an_engine_that_failed_is_made_anew() -> None:
    engines: list[PlayedEngine] = []

    def make() -> Engine:
        engines.append(PlayedEngine())
        return engines[-1]

    scattered = [Box(at, at * 1024, 1, ()) for at in range(2500)]
    with mooncake_peer(2500 * 1024, make) as peer, target(2500) as into:
        assert peer.reader.read(HANDLE, scattered, into, soon(), never) == 2500
        assert engines[1].batches == [1024, 1024, 452]
        gone = PlayedEngine.alive.pop(engines[0].name)
        with pytest.raises(PeerLost, match="may have landed"):
            peer.reader.read(HANDLE, scattered, into, soon(), never)
        PlayedEngine.alive[gone.name] = gone
        assert peer.reader.read(HANDLE, scattered, into, soon(), never) == 2500
        assert len(engines) == 3


# ---- mapping


def test_a_window_that_is_closed_midway_is_not_read_any_more() -> None:
    """The owner of the pages wants them back: what was not read yet is lost, and said."""
    with mapped_peer(SIZE) as peer, target() as into:
        reader = peer.reader
        assert isinstance(reader, MappedReader)
        assert reader.read(HANDLE, [Box(0, 0, SIZE, ())], into, soon(), never) == SIZE
        reader._window.close()
        with pytest.raises(PeerLost, match="took its memory back"):
            reader.read(HANDLE, [Box(0, 0, 1, ())], into, soon(), never)


def test_who_reads_is_waited_for_and_nobody_else_comes_in() -> None:
    descriptor = os.memfd_create("chunk")
    os.ftruncate(descriptor, 4096)
    window = Window([(descriptor, 4096)])
    os.close(descriptor)
    with window.reading() as address:
        closed = meanwhile(window.close)
        while window.is_open:  # the other thread has begun
            time.sleep(0)
        assert read(address, 4) == bytes(4)
        with pytest.raises(PeerLost):
            window.take(0, address, 1, soon())
    closed()


@pytest.mark.parametrize("part", [Part(-1, 10), Part(0, 8193), Part(4096, 4097)])
def test_a_region_beside_the_window_is_refused(part: Part) -> None:
    descriptor = os.memfd_create("chunk")
    os.ftruncate(descriptor, 8192)
    with closing(Window([(descriptor, 8192)])) as window, pytest.raises(ReadRefused, match="leaves what"):
        MappedReader(window, {HANDLE: part})
    os.close(descriptor)
