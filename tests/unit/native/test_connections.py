"""The socket server by itself, on asyncio and on uvloop, with a session that does what a test wants."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from native import connections, protocol
from native.client import Client
from native.connections import Answer, Server, SocketError
from native.link import DaemonRefused, DaemonUnavailable
from native.processes import Process
from native.protocol import Code, Done, Facts, Hello, Refused, Stats, Welcome

PATIENCE_S = 60.0
LENGTH = struct.Struct(">I")
Handle = Callable[[protocol.Request], Coroutine[object, object, Answer]]


class Scripted:
    """A session whose answers a test gives."""

    def __init__(self, process: Process, handle: Handle) -> None:
        self.process = process
        self._handle = handle
        self.ended = asyncio.Event()

    async def handle(self, request: protocol.Request, beside: Sequence[int] = ()) -> Answer:
        if isinstance(request, Hello):
            return Answer(Welcome("test", {}))
        return await self._handle(request)

    def closed(self) -> None:
        self.process.close()
        self.ended.set()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    """Runs a coroutine on that kind of loop."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(work: Coroutine[object, object, object]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(work, PATIENCE_S))

    return run


@asynccontextmanager
async def serving(
    path: Path, handle: Handle, *, uid: int | None = None, peerpidfd: bool = True
) -> AsyncIterator[list[Scripted]]:
    """Sessions in the order they were opened."""
    sessions: list[Scripted] = []

    def open_session(process: Process) -> Scripted:
        sessions.append(Scripted(process, handle))
        return sessions[-1]

    server = Server(path, open_session, uid=uid, peerpidfd=peerpidfd)
    task = asyncio.create_task(server.run())
    try:
        yield sessions
    finally:
        task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled():
            task.result()
    assert not path.exists()  # noqa: ASYNC240


async def facts(request: protocol.Request) -> Answer:
    return Answer(Facts("{}"))


def client(path: Path) -> Client:
    return Client(str(path), "e", "n", "worker", call_timeout=PATIENCE_S)


@pytest.mark.parametrize("peerpidfd", [True, False])
def test_a_client_is_served(run, tmp_path: Path, peerpidfd: bool) -> None:  # type: ignore[no-untyped-def]
    async def body() -> None:
        async with serving(tmp_path / "s", facts, peerpidfd=peerpidfd) as sessions:
            with client(tmp_path / "s") as one:
                assert await asyncio.to_thread(one.stats) == "{}"
                assert sessions[0].process.identity.pid == os.getpid()
            await sessions[0].ended.wait()

    run(body())


def test_another_uid_is_refused(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    async def body() -> None:
        async with serving(tmp_path / "s", facts, uid=os.getuid() + 1) as sessions:
            with client(tmp_path / "s") as one, pytest.raises(DaemonRefused, match="forbidden"):
                await asyncio.to_thread(one.connect)
            assert not sessions

    run(body())


def test_too_many_connections_are_refused(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)

    async def body() -> None:
        async with serving(tmp_path / "s", facts) as sessions:
            with client(tmp_path / "s") as one, client(tmp_path / "s") as two, client(tmp_path / "s") as three:
                await asyncio.to_thread(one.connect)
                await asyncio.to_thread(two.connect)
                with pytest.raises(DaemonRefused, match="connections are open"):
                    await asyncio.to_thread(three.connect)
                one.close()
                await sessions[0].ended.wait()
                await asyncio.to_thread(three.connect)

    run(body())


def test_hanging_up_cancels_the_request(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    async def body() -> None:
        begun, cancelled = asyncio.Event(), asyncio.Event()

        async def for_ever(request: protocol.Request) -> Answer:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            raise AssertionError

        async with serving(tmp_path / "s", for_ever) as sessions:
            one = client(tmp_path / "s")
            call = asyncio.create_task(asyncio.to_thread(one.stats))
            await begun.wait()
            await asyncio.to_thread(one.close)
            await cancelled.wait()
            await sessions[0].ended.wait()
            with pytest.raises(DaemonUnavailable, match="closed here"):
                await call

    run(body())


def test_a_failing_request_is_answered_and_the_server_lives_on(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    async def body() -> None:
        async def fail(request: protocol.Request) -> Answer:
            raise ZeroDivisionError

        async with serving(tmp_path / "s", fail):
            for _ in range(2):
                with client(tmp_path / "s") as one, pytest.raises(DaemonRefused, match="failed"):
                    await asyncio.to_thread(one.stats)

    run(body())


def test_a_silent_and_a_slow_peer_are_ended(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(connections, "FRAME_TIMEOUT", 0.2)

    async def body() -> None:
        async with serving(tmp_path / "s", facts) as sessions:
            for first in (b"", LENGTH.pack(100) + b"half", protocol.encode(Stats())[:2]):
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.setblocking(False)
                    sock.connect(str(tmp_path / "s"))
                    await asyncio.get_running_loop().sock_sendall(sock, first)
                    assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
                await sessions[-1].ended.wait()

    run(body())


def test_a_peer_that_may_be_silent_between_requests(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(connections, "FRAME_TIMEOUT", 1.0)

    async def body() -> None:
        async with serving(tmp_path / "s", facts) as sessions:
            with client(tmp_path / "s") as one:
                await asyncio.to_thread(one.connect)
                await asyncio.sleep(1.5)
                assert await asyncio.to_thread(one.stats) == "{}"
                assert len(sessions) == 1

    run(body())


def test_a_long_answer_to_a_slow_reader_comes_whole(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """More than the socket's buffer holds, so that the answer is sent in pieces."""
    text = "x" * (900 << 10)

    async def body() -> None:
        async def long(request: protocol.Request) -> Answer:
            return Answer(Facts(text))

        async with serving(tmp_path / "s", long):
            with client(tmp_path / "s") as one:
                for _ in range(3):
                    assert await asyncio.to_thread(one.stats) == text

    run(body())


def test_an_answer_that_nobody_reads_is_undone(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Read half, it may have taken effect; not read at all, it is undone, and `done` is called either way."""

    async def body() -> None:
        undone, done = threading.Event(), threading.Event()

        async def answer(request: protocol.Request) -> Answer:
            return Answer(Done(), unsent=undone.set, done=done.set)

        async with serving(tmp_path / "s", answer) as sessions:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.setblocking(False)
                sock.connect(str(tmp_path / "s"))
                request = protocol.encode(Stats())
                await asyncio.get_running_loop().sock_sendall(sock, LENGTH.pack(len(request)) + request)
                await asyncio.to_thread(done.wait)
                assert not undone.is_set()
            await sessions[0].ended.wait()
            assert undone.is_set()

    run(body())


def test_a_peer_that_never_reads_is_ended(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(connections, "FRAME_TIMEOUT", 0.5)

    async def body() -> None:
        opened = asyncio.Event()

        async def long(request: protocol.Request) -> Answer:
            opened.set()
            return Answer(Facts("x" * (1 << 19)))

        async with serving(tmp_path / "s", long) as sessions:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(tmp_path / "s"))
                request = protocol.encode(Stats())
                sock.sendall(LENGTH.pack(len(request)) + request)
                await opened.wait()
                await sessions[0].ended.wait()

    run(body())


def test_descriptors_arrive_with_their_answer(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    async def body() -> None:
        files = [tmp_path / str(number) for number in range(protocol.MAX_FDS)]
        for file in files:
            file.write_text(file.name)
        ours = tuple(os.open(file, os.O_RDONLY) for file in files)

        async def give(request: protocol.Request) -> Answer:
            assert isinstance(request, protocol.Map)
            return Answer(protocol.Mapped(tuple(range(request.count)), 10), ours[: request.count])

        async with serving(tmp_path / "s", give):
            with client(tmp_path / "s") as one:
                chunks = await asyncio.to_thread(one.map, "0", protocol.Kind.KV, protocol.MAX_FDS)
                assert [os.read(chunk.fd, 10).decode() for chunk in chunks] == [file.name for file in files]
                assert not any(os.get_inheritable(chunk.fd) for chunk in chunks)
        for descriptor in (*ours, *(chunk.fd for chunk in chunks)):
            os.close(descriptor)

    run(body())


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(SocketError, match="is no socket"):
        Server(path, lambda process: Scripted(process, facts))
    assert path.read_text() == "precious"


def test_a_socket_left_by_a_killed_daemon_is_taken_over(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))

    async def body() -> None:
        async with serving(tmp_path / "s", facts):
            with client(tmp_path / "s") as one:
                assert await asyncio.to_thread(one.stats) == "{}"
            with pytest.raises(SocketError, match="another daemon listens"):
                Server(tmp_path / "s", lambda process: Scripted(process, facts))

    run(body())


def test_a_path_that_is_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(SocketError, match="give another --socket"):
        Server(tmp_path / ("s" * 120), lambda process: Scripted(process, facts))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), framed=st.booleans())
def test_no_bytes_bring_it_down(tmp_path_factory: pytest.TempPathFactory, data: bytes, framed: bool) -> None:
    """Random bytes, framed or not: refused, ignored or answered, never a crash; the next peer is served."""
    path = tmp_path_factory.mktemp("s") / "s"

    async def body() -> None:
        async with serving(path, facts) as sessions:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                sock.sendall(LENGTH.pack(len(data)) + data if framed else data)
                sock.shutdown(socket.SHUT_WR)
                sock.setblocking(False)
                with suppress(ConnectionResetError):  # where it closed with some of our bytes unread
                    while await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
                        pass
            await sessions[0].ended.wait()
            with client(path) as one:
                assert await asyncio.to_thread(one.stats) == "{}"

    asyncio.run(asyncio.wait_for(body(), PATIENCE_S))


def test_a_refusal_keeps_the_connection(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    async def body() -> None:
        async def refuse(request: protocol.Request) -> Answer:
            return Answer(Refused(Code.NOT_OPEN, "no"))

        async with serving(tmp_path / "s", refuse) as sessions:
            with client(tmp_path / "s") as one:
                for _ in range(3):
                    with pytest.raises(DaemonRefused) as refused:
                        await asyncio.to_thread(one.stats)
                    assert refused.value.code is Code.NOT_OPEN
                assert len(sessions) == 1

    run(body())
