"""The client against servers that misbehave: scripted ones, on a thread."""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from native import protocol
from native.client import Client, portions
from native.link import DaemonError, DaemonRefused, DaemonUnavailable
from native.protocol import (
    MAX_FDS,
    MAX_FRAME,
    Code,
    Done,
    Facts,
    Hello,
    Kind,
    Map,
    Mapped,
    Refused,
    Stats,
    Unmap,
    Welcome,
)

LENGTH = struct.Struct(">I")
WELCOME = Welcome("test", {"0": 10})


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def receive(self) -> protocol.Request:
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
        request: protocol.Request = protocol.decode_request(self._exactly(length))
        return request

    def send(self, reply: protocol.Reply, descriptors: tuple[int, ...] = ()) -> None:
        body = protocol.encode(reply)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.sock.sendmsg([LENGTH.pack(len(body)) + body], ancillary)

    def greet(self) -> None:
        assert isinstance(self.receive(), Hello)
        self.send(WELCOME)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                raise ConnectionResetError
            data += part
        return data


Script = Callable[[Peer], None]


@contextmanager
def playing(path: Path, *scripts: Script) -> Iterator[None]:
    """Each connection in turn gets its script; then the connection is closed."""
    failures: list[BaseException] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def play() -> None:
            try:
                for script in scripts:
                    sock, _ = listener.accept()
                    with sock:
                        script(Peer(sock))
            except BaseException as failure:  # noqa: BLE001 (handed to the test's thread)
                failures.append(failure)

        thread = threading.Thread(target=play)
        thread.start()
        yield
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    if failures and not isinstance(failures[0], ConnectionResetError | OSError):
        raise failures[0]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(str(tmp_path / "s"), "e", "n", "worker", call_timeout=30.0) as client:
        yield client


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_call_is_sent_again_on_a_new_connection(tmp_path: Path, client: Client) -> None:
    """The daemon was restarted between the request and its answer."""

    def dies(peer: Peer) -> None:
        peer.greet()
        assert isinstance(peer.receive(), Stats)

    def answers(peer: Peer) -> None:
        peer.greet()
        assert isinstance(peer.receive(), Stats)
        peer.send(Facts("again"))

    with playing(tmp_path / "s", dies, dies, answers):
        assert client.stats() == "again"


def test_a_repeated_map_keeps_its_ticket_and_a_new_one_has_another(tmp_path: Path, client: Client) -> None:
    tickets: list[int] = []

    def lost(peer: Peer) -> None:
        peer.greet()
        request = peer.receive()
        assert isinstance(request, Map)
        tickets.append(request.ticket)

    def kept(peer: Peer) -> None:
        peer.greet()
        for _ in range(2):
            request = peer.receive()
            assert isinstance(request, Map)
            tickets.append(request.ticket)
            with Path(os.devnull).open() as null:
                peer.send(Mapped((7,), 10), (null.fileno(),))

    with playing(tmp_path / "s", lost, kept):
        for _ in range(2):
            (chunk,) = client.map("0", Kind.KV, 1)
            os.close(chunk.fd)
    assert tickets[0] == tickets[1] != tickets[2]


@given(st.integers(0, 3 * MAX_FDS), st.integers(0, 3 * MAX_FDS))
def test_chunks_are_asked_for_in_as_few_calls_as_may_be(count: int, kv: int) -> None:
    """Weights first, KV behind them, never more than go beside one answer."""
    found = list(portions(Kind.WEIGHTS, count, kv))
    asked = [kind for one in found for kind in [one.kind] * one.count + [Kind.KV] * one.kv]
    assert asked == [Kind.WEIGHTS] * count + [Kind.KV] * kv
    assert all(one.count > 0 and one.count + one.kv <= MAX_FDS for one in found)
    assert len(found) == -(-(count + kv) // MAX_FDS)


def test_all_chunks_or_none(tmp_path: Path, client: Client) -> None:
    """The second part is refused: the first is given back and its descriptors are closed."""
    before = descriptors()
    returned: list[int] = []

    def script(peer: Peer) -> None:
        peer.greet()
        first = peer.receive()
        assert isinstance(first, Map)
        assert first.count == protocol.MAX_FDS
        with Path(os.devnull).open() as null:
            peer.send(Mapped(tuple(range(first.count)), 10), (null.fileno(),) * first.count)
        second = peer.receive()
        assert isinstance(second, Map)
        assert second.count == 2
        peer.send(Refused(Code.NO_SPACE, "full"))
        last = peer.receive()
        assert isinstance(last, Unmap)
        returned.extend(last.chunks)
        peer.send(Done())

    with playing(tmp_path / "s", script):
        with pytest.raises(DaemonRefused, match="full"):
            client.map("0", Kind.KV, protocol.MAX_FDS + 2)
        client.close()
    assert returned == list(range(protocol.MAX_FDS))
    assert descriptors() <= before


def test_no_daemon_is_told_at_the_deadline(tmp_path: Path, client: Client) -> None:
    with pytest.raises(DaemonUnavailable, match="No such file"):
        client.stats(0.3)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    with pytest.raises(DaemonUnavailable, match="refused"):
        client.stats(0.3)


def test_a_daemon_that_comes_late_is_found(tmp_path: Path, client: Client) -> None:
    results: list[str] = []
    call = threading.Thread(target=lambda: results.append(client.stats()))
    call.start()
    time.sleep(0.2)

    def script(peer: Peer) -> None:
        peer.greet()
        peer.receive()
        peer.send(Facts("late"))

    with playing(tmp_path / "s", script):
        call.join()
    assert results == ["late"]


def test_a_silent_daemon_is_told_at_the_deadline_and_not_asked_again(tmp_path: Path, client: Client) -> None:
    asked: list[protocol.Request] = []

    def silent(peer: Peer) -> None:
        peer.greet()
        asked.append(peer.receive())
        with suppress(ConnectionResetError):
            peer.receive()

    def well(peer: Peer) -> None:
        peer.greet()
        asked.append(peer.receive())
        peer.send(Facts("well"))

    with playing(tmp_path / "s", silent, well):
        with pytest.raises(DaemonUnavailable, match="no answer in time"):
            client.stats(0.3)
        assert len(asked) == 1
        assert client.stats() == "well"


def test_a_refused_hello_is_told(tmp_path: Path, client: Client) -> None:
    def script(peer: Peer) -> None:
        peer.receive()
        peer.send(Refused(Code.FORBIDDEN, "who are you"))

    with playing(tmp_path / "s", script), pytest.raises(DaemonRefused, match="who are you"):
        client.stats()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(LENGTH.pack(MAX_FRAME + 1), id="oversize"),
        pytest.param(LENGTH.pack(3) + b"\xc1\xc1\xc1", id="garbage"),
        pytest.param(LENGTH.pack(len(protocol.encode(Done()))) + protocol.encode(Done()), id="another's answer"),
    ],
)
def test_a_wrong_answer_is_an_error(tmp_path: Path, client: Client, answer: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.receive()
        peer.sock.sendall(answer)

    with playing(tmp_path / "s", script), pytest.raises(DaemonError):
        client.stats()


def test_descriptors_of_a_wrong_answer_are_closed(tmp_path: Path, client: Client) -> None:
    before = descriptors()

    def script(peer: Peer) -> None:
        peer.greet()
        peer.receive()
        with Path(os.devnull).open() as null:
            peer.send(Mapped((1, 2, 3), 10), (null.fileno(),) * 2)

    with playing(tmp_path / "s", script):
        with pytest.raises(DaemonError, match="3 chunks came with 2 descriptors"):
            client.map("0", Kind.KV, 3)
        client.close()
    assert descriptors() <= before


def test_closing_ends_a_call_in_another_thread(tmp_path: Path, client: Client) -> None:
    received = threading.Event()
    errors: list[Exception] = []

    def script(peer: Peer) -> None:
        peer.greet()
        peer.receive()
        received.set()
        peer.receive()

    def call() -> None:
        try:
            client.enter("0", "e1", 5, 1000.0)
        except DaemonError as error:
            errors.append(error)

    with playing(tmp_path / "s", script):
        thread = threading.Thread(target=call)
        thread.start()
        received.wait()
        client.close()
        thread.join()
    assert [type(error) for error in errors] == [DaemonUnavailable]


def test_a_missing_master_is_none(tmp_path: Path, client: Client) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.receive()
        peer.send(Refused(Code.NOT_FOUND, "no master"))

    with playing(tmp_path / "s", script):
        assert client.open_master("d") is None
