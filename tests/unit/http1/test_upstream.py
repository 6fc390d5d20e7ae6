"""Connections to engines: when one is used again, and how an answer can break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from coordinator.http1 import upstream as module
from coordinator.http1.head import request_head
from coordinator.http1.upstream import BrokenOff, Pool

Engine = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = request_head("POST", "/x", {"Host": "h", "Content-Length": "2"})
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"


def says(*answers: bytes, then_closes: bool = False) -> Engine:
    """Each request of a connection is answered by the next of `answers`."""

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            writer.write(answer)
            await writer.drain()
        if not then_closes:
            await reader.read()

    return engine


class Engines:
    """Connections that were made, and where."""

    def __init__(self) -> None:
        self.count = 0
        self.ended = asyncio.Event()
        self.address = ("127.0.0.1", 0)


@asynccontextmanager
async def pool(engine: Engine, silence_s: float = 30.0) -> AsyncIterator[tuple[Pool, Engines]]:
    engines = Engines()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engines.count += 1
        try:
            await engine(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            engines.ended.set()
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    engines.address = ("127.0.0.1", int(server.sockets[0].getsockname()[1]))
    connections = Pool(silence_s)
    try:
        async with asyncio.timeout(30):
            yield connections, engines
    finally:
        await connections.close()
        server.close()
        await asyncio.sleep(0.01)


async def ask(connections: Pool, address: tuple[str, int]) -> bytes:
    """A whole answer."""
    upstream = await connections.take(address, 5.0)
    try:
        await upstream.ask(HEAD, b"{}")
        body = b""
        while more := await upstream.read():
            body += more
        return body
    finally:
        connections.give(address, upstream)


async def test_a_connection_is_used_again_once_its_answer_was_read_whole() -> None:
    async with pool(says(WHOLE, WHOLE, WHOLE)) as (connections, engines):
        assert [await ask(connections, engines.address) for _ in range(3)] == [b"abc"] * 3
        assert engines.count == 1


async def test_one_whose_answer_was_not_read_ends_and_the_engine_sees_it() -> None:
    async with pool(says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")) as (connections, engines):
        upstream = await connections.take(engines.address, 5.0)
        await upstream.ask(HEAD, b"{}")
        assert await upstream.read() == b"abc"
        connections.give(engines.address, upstream)
        await engines.ended.wait()
        assert not upstream.reusable


@pytest.mark.parametrize("closing", [b"Connection: close\r\n", b""])
async def test_one_that_the_engine_ends_is_not_used_again(closing: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\n" + closing + b"Content-Length: 3\r\n\r\nabc"
    async with pool(says(answer, then_closes=True)) as (connections, engines):
        assert await ask(connections, engines.address) == b"abc"
        await engines.ended.wait()
        await asyncio.sleep(0.01)
        assert await ask(connections, engines.address) == b"abc"
        assert engines.count == 2


async def test_one_that_the_engine_wants_to_end_is_not_used_again_though_it_is_still_open() -> None:
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
    async with pool(says(answer, WHOLE)) as (connections, engines):
        assert [await ask(connections, engines.address) for _ in range(2)] == [b"abc"] * 2
        assert engines.count == 2


async def test_one_whose_answer_has_come_whole_but_was_not_read_is_not_used_again() -> None:
    async with pool(says(WHOLE, WHOLE)) as (connections, engines):
        upstream = await connections.take(engines.address, 5.0)
        await upstream.ask(HEAD, b"{}")
        while not upstream.ready:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0)
        connections.give(engines.address, upstream)
        assert await ask(connections, engines.address) == b"abc"
        assert engines.count == 2


async def test_an_idle_one_ends_before_the_engine_would_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_S", 0.01)
    monkeypatch.setattr(module, "SWEEP_S", 0.01)
    async with pool(says(WHOLE, WHOLE)) as (connections, engines):
        await ask(connections, engines.address)
        await engines.ended.wait()
        await ask(connections, engines.address)
        assert engines.count == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000,
    ],
)
async def test_an_answer_that_is_not_whole_is_broken_off(answer: bytes) -> None:
    async with pool(says(answer, then_closes=True)) as (connections, engines):
        with pytest.raises(BrokenOff):
            await ask(connections, engines.address)


async def test_an_answer_may_end_with_its_connection() -> None:
    async with pool(says(b"HTTP/1.1 200 OK\r\n\r\nabc", then_closes=True)) as (connections, engines):
        assert await ask(connections, engines.address) == b"abc"


async def test_interim_answers_are_passed_over_and_two_answers_are_one_too_many() -> None:
    async with pool(says(b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE)) as (connections, engines):
        assert await ask(connections, engines.address) == b"abc"
    async with pool(says(WHOLE + WHOLE, WHOLE)) as (connections, engines):
        assert await ask(connections, engines.address) == b"abc"
        assert await ask(connections, engines.address) == b"abc"
        assert engines.count == 2


async def test_an_engine_that_is_silent_for_too_long_is_left() -> None:
    async with pool(says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"), 0.1) as (connections, engines):
        with pytest.raises(BrokenOff, match=r"silent for 0.1 s"):
            await ask(connections, engines.address)
        await engines.ended.wait()


async def test_one_that_falls_silent_after_words_that_went_on_is_left_too() -> None:
    chunks = b"1\r\na\r\n", b"1\r\nb\r\n"

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for chunk in chunks:
            await asyncio.sleep(0.02)
            writer.write(chunk)
        await reader.read(10)
        await reader.read()

    async with pool(engine, 0.2) as (connections, engines):
        upstream, taken = await connections.take(engines.address, 5.0), bytearray()
        await upstream.ask(HEAD, b"{}")
        with pytest.raises(BrokenOff, match=r"silent for 0.2 s"):
            await upstream.hand_on(lambda data: taken.extend(data) is None)
        assert taken == b"ab"
        connections.give(engines.address, upstream)


async def test_a_reader_that_waits_holds_the_engine_back_and_gets_all() -> None:
    size = 64 << 20
    sent = 0

    async def fast(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"x" * (1 << 20))
            await writer.drain()
            sent += 1 << 20
        await reader.read()

    async with pool(fast) as (connections, engines):
        upstream = await connections.take(engines.address, 5.0)
        await upstream.ask(HEAD, b"{}")
        last = -1
        while sent != last:
            last = sent
            await asyncio.sleep(0.1)
        assert sent < size
        got = 0
        while more := await upstream.read():
            got += len(more)
        assert got == size
        assert upstream.reusable
        connections.give(engines.address, upstream)


async def test_nobody_there() -> None:
    async with pool(says()) as (connections, engines):
        address = engines.address
    with pytest.raises(OSError, match="Connect"):
        await connections.take(address, 5.0)


@pytest.mark.parametrize("value", ["a\r\nX: b", "a\nb", "a\rb", "a\0b"])
def test_a_value_that_would_end_its_line_is_not_written(value: str) -> None:
    with pytest.raises(ValueError, match="line end"):
        request_head("POST", "/", {"Accept": value})
