"""A client's connection, byte by byte: framing, order, bounds, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from coordinator.http1 import connection, server
from coordinator.http1.request import Request, path_of
from coordinator.http1.response import Response
from coordinator.http1.server import Server

Handle = Callable[[Request, Response], Awaitable[None]]


async def echo(request: Request, response: Response) -> None:
    """Method, path, and the whole body."""
    body = b"".join([chunk async for chunk in request.chunks()])
    response.whole(200, {}, f"{request.method} {request.path} ".encode() + body)


@asynccontextmanager
async def dialled(
    handle: Handle = echo, drain_s: float = 5.0
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, Server]]:
    """A client that writes and reads bytes, and the server."""
    listening = Server(handle, "127.0.0.1", 0, drain_s)
    await listening.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(listening.url.rpartition(":")[2]))
    try:
        async with asyncio.timeout(30):
            yield reader, writer, listening
    finally:
        writer.close()
        await listening.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """(status, fields, body) of the next answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    body = b""
    if fields.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    elif "content-length" in fields:
        body = await reader.readexactly(int(fields["content-length"]))
    return int(head[0].split()[1]), fields, body


async def test_requests_that_come_at_once_are_answered_in_their_order_on_one_connection() -> None:
    async with dialled() as (reader, writer, _):
        for n in range(5):
            writer.write(f"POST /{n} HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n{n}".encode())
        seen = []
        for _ in range(5):
            status, fields, body = await answer(reader)
            assert (status, "connection" in fields) == (200, False)
            seen.append(body)
    assert seen == [f"POST /{n} {n}".encode() for n in range(5)]


async def test_one_request_is_handled_at_a_time_whatever_has_come() -> None:
    running, most = 0, 0

    async def slow(request: Request, response: Response) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        response.whole(200, {}, request.path.encode())

    async with dialled(slow) as (reader, writer, _):
        writer.write(b"".join(f"GET /{n} HTTP/1.1\r\nHost: h\r\n\r\n".encode() for n in range(4)))
        assert [(await answer(reader))[2] for _ in range(4)] == [f"/{n}".encode() for n in range(4)]
    assert most == 1


async def test_a_request_in_single_bytes_and_a_body_in_chunks() -> None:
    raw = b"POST /a%2Fb?q=1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    async with dialled() as (reader, writer, _):
        for byte in raw:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await answer(reader))[2] == b"POST /a/b abcde"


async def test_a_client_that_waits_to_be_asked_for_its_body_is_asked() -> None:
    async with dialled() as (reader, writer, _):
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert (await answer(reader))[2] == b"POST / abc"


async def test_a_stream_is_chunked_and_for_an_old_client_ends_with_its_connection() -> None:
    async def stream(request: Request, response: Response) -> None:
        response.start(200, {})
        response.write(b"one")
        response.write(b"")
        response.write(b"two", last=True)

    async with dialled(stream) as (reader, writer, _):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await answer(reader))[2] == b"onetwo"
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        _, fields, body = await answer(reader)
        assert (fields["connection"], fields["transfer-encoding"], body) == ("close", "chunked", b"onetwo")
        assert await reader.read() == b""
    async with dialled(stream) as (reader, writer, _):
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert b"chunked" not in head
        assert body == b"onetwo"


async def test_the_head_of_a_stream_can_go_before_its_first_words_and_head_has_no_body() -> None:
    go = asyncio.Event()

    async def late(request: Request, response: Response) -> None:
        if request.method == "HEAD":
            response.whole(200, {}, b"four")
            return
        response.start(200, {})
        response.flush()
        await go.wait()
        response.write(b"x")

    async with dialled(late) as (reader, writer, _):
        writer.write(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"Content-Length: 4" in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        go.set()
        assert await reader.readuntil(b"0\r\n\r\n") == b"1\r\nx\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n\r\n", 400),
        (b"GET nowhere HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET http://other/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 300 + b"\r\n", 431),
        (b"GET /" + b"y" * 40_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 431),
    ],
)
async def test_what_is_no_request_is_refused_and_the_connection_ends(raw: bytes, status: int) -> None:
    async with dialled() as (reader, writer, _):
        writer.write(raw)
        got, fields, _ = await answer(reader)
        assert (got, fields["connection"]) == (status, "close")
        assert await reader.read() == b""


async def test_a_head_without_an_end_is_not_collected_for_ever() -> None:
    async with dialled() as (reader, writer, _):
        writer.write(b"GET / HTTP/1.1\r\nX: ")
        status = asyncio.create_task(reader.readline())
        while not status.done():
            writer.write(b"y" * 10_000)
            await writer.drain()
            await asyncio.sleep(0)
        assert b"431" in await status


async def test_nonsense_after_a_whole_request_does_not_take_its_answer_away() -> None:
    async with dialled() as (reader, writer, _):
        writer.write(b"GET /good HTTP/1.1\r\nHost: h\r\n\r\nnonsense\r\n\r\n")
        status, fields, body = await answer(reader)
        assert (status, fields["connection"], body) == (200, "close", b"GET /good ")
        assert await reader.read() == b""


async def test_an_upgrade_is_not_taken() -> None:
    async with dialled() as (reader, writer, _):
        writer.write(
            b"POST / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nab"
        )
        assert (await answer(reader))[2] == b"POST / ab"
        writer.write(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        writer.write(b"GET /y HTTP/1.1\r\nHost: h\r\n\r\n")
        assert [(await answer(reader))[2] for _ in range(2)] == [b"GET /x ", b"GET /y "]


async def test_an_answer_before_the_body_arrives_though_the_client_still_sends() -> None:
    async def refuse(request: Request, response: Response) -> None:
        response.whole(413, {}, b"too much")

    async with dialled(refuse) as (reader, writer, _):
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 1_000_000)
        status, fields, body = await answer(reader)
        assert (status, fields["connection"], body) == (413, "close", b"too much")
        assert await reader.read() == b""


async def test_a_body_that_nobody_reads_stays_in_the_network() -> None:
    go = asyncio.Event()

    async def late(request: Request, response: Response) -> None:
        await go.wait()
        await echo(request, response)

    size = 40 << 20
    async with dialled(late) as (reader, writer, _):
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
        sent = asyncio.create_task(_send(writer, size))
        done, _ = await asyncio.wait((sent,), timeout=0.3)
        assert not done
        go.set()
        assert len((await answer(reader))[2]) == size + len("POST / ")
        await sent


async def _send(writer: asyncio.StreamWriter, size: int) -> None:
    for _ in range(size >> 20):
        writer.write(b"x" * (1 << 20))
        await writer.drain()


async def test_a_client_that_leaves_ends_the_handler() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def endless(request: Request, response: Response) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with dialled(endless) as (_, writer, _server):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await began.wait()
        writer.close()
        await ended.wait()


async def test_a_handler_that_fails_is_answered_for_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(request: Request, response: Response) -> None:
        raise RuntimeError("a defect")

    async with dialled(broken) as (reader, writer, _):
        writer.write(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await answer(reader))[0] == 500
        assert await reader.read() == b""
    assert "GET /x failed" in caplog.text
    assert "a defect" in caplog.text


async def test_a_stream_that_fails_midway_has_no_end() -> None:
    async def half(request: Request, response: Response) -> None:
        response.start(200, {})
        response.write(b"half")
        response.cut()

    async with dialled(half) as (reader, writer, _):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await reader.read()).endswith(b"4\r\nhalf\r\n")


async def test_the_end_lets_a_request_finish_within_its_time_and_cancels_the_rest() -> None:
    go, began, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def late(request: Request, response: Response) -> None:
        began.set()
        try:
            await go.wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        response.whole(200, {}, b"ok")

    async with dialled(late) as (reader, writer, listening):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await began.wait()
        ending = asyncio.create_task(listening.close())
        await asyncio.sleep(0)
        go.set()
        status, fields, _ = await answer(reader)
        assert (status, fields["connection"]) == (200, "close")
        await ending
    go.clear()
    began.clear()
    async with dialled(late, drain_s=0.01) as (reader, writer, listening):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await began.wait()
        await listening.close()
        await cancelled.wait()
        assert await reader.read() == b""


async def test_the_end_waits_until_what_was_written_is_out() -> None:
    large = b"x" * (8 << 20)  # more than the network takes at once

    async def all_of_it(request: Request, response: Response) -> None:
        response.whole(200, {}, large)

    async with dialled(all_of_it) as (reader, writer, listening):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        ending = asyncio.create_task(listening.close())
        assert len(await reader.read()) == len(large)
        await ending


async def test_an_idle_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_S", 0.01)
    monkeypatch.setattr(server, "SWEEP_S", 0.01)
    async with dialled() as (reader, writer, _):
        writer.write(b"GET / HT")  # half a head is idle, too
        assert await reader.read() == b""


async def test_a_client_that_never_closes_does_not_keep_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.01)
    async with dialled() as (reader, writer, listening):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        await answer(reader)
        while listening.connections:  # noqa: ASYNC110 - it says to nobody that one has ended
            await asyncio.sleep(0.01)


async def test_a_slow_reader_of_the_last_answer_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.05)
    size = 64 << 20

    async def large(request: Request, response: Response) -> None:
        response.whole(200, {}, bytes(size))

    async with dialled(large) as (reader, writer, _):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        await asyncio.sleep(0.2)  # reads nothing meanwhile
        assert len((await answer(reader))[2]) == size


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/v1/models/a%2Fb?x=1", "/v1/models/a/b"),
        (b"http://H:1/x?y", "/x"),
        (b"http://h:1", "/"),
        (b"http://other/x", None),
        (b"https://h:1/x", None),
        (b"*", None),
        (b"h:1", None),
        (b"/\xff", None),
        (b"http://[::1/", None),
    ],
)
def test_what_a_target_names(target: bytes, path: str | None) -> None:
    assert path_of(target, "h:1") == path
