"""How a stream is passed on: what has come together goes together, nothing twice, the end with the last words."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from coordinator.gateway.problem import Problem
from coordinator.gateway.relay import relay
from coordinator.http1.turns import Turns
from coordinator.http1.upstream import BrokenOff, Upstream

ONE, DONE = b"data: 1\n\n", b"data: [DONE]\n\n"


class Engine:
    """Says `words` one after the other; an empty one is the end, none breaks it off."""

    status = 200

    def __init__(self, *words: bytes | None) -> None:
        self.headers = {"Content-Type": "text/event-stream"}
        self.words = list(words)

    @property
    def over(self) -> bool:
        return self.words == [b""] or not self.words

    @property
    def ready(self) -> bool:
        return not self.words or self.words[0] is not None

    def here(self) -> bytes:
        return self.words.pop(0) or b""

    async def hand_on(self, take: object) -> None:
        raise BrokenOff("it died")


class Client:
    """What is written, and whether it was the last; the engine ends while the word `slow` is written."""

    request = SimpleNamespace(path="/v1/completions")

    def __init__(self, engine: Engine | None = None, slow: bytes = b"") -> None:
        self.engine = engine
        self.slow = slow
        self.written: list[tuple[bytes, bool]] = []
        self.failed: Problem | None = None
        self.behind = False
        self.reads = asyncio.Event()

    async def open(self, status: int, headers: object, *, events: bool) -> None:
        pass

    async def write(self, data: bytes, *, last: bool = False) -> None:
        self.written.append((data, last))
        if data == self.slow and self.engine is not None:
            self.engine.words.clear()

    def put(self, data: bytes) -> bool:
        self.written.append((data, False))
        self.behind = data == self.slow
        return not self.behind

    async def drained(self) -> None:
        if self.behind:
            await self.reads.wait()
            self.behind = False

    def flush(self) -> None:
        pass

    async def fail(self, problem: Problem) -> None:
        self.failed = problem


async def passed(engine: Engine, slow: bytes = b"") -> tuple[Client, int]:
    """The client, and how often the first words were told."""
    client = Client(engine, slow)
    told: list[None] = []
    await relay(engine, client, "m", lambda: told.append(None))  # type: ignore[arg-type]
    return client, len(told)


@pytest.mark.parametrize(
    ("words", "written"),
    [
        ((ONE + DONE, b""), [(ONE + DONE, True)]),
        ((ONE, DONE, b""), [(ONE, False), (DONE, True)]),
        ((ONE, DONE[:5], DONE[5:], b""), [(ONE, False), (DONE, True)]),
        ((ONE, DONE[:-2], b"", b""), [(ONE, False), (DONE[:-2], True)]),
    ],
)
async def test_the_end_goes_with_the_last_words(words: tuple[bytes, ...], written: list[tuple[bytes, bool]]) -> None:
    client, told = await passed(Engine(*words))
    assert (b"".join(data for data, _ in client.written), client.failed) == (b"".join(words), None)
    assert client.written == written
    assert told == 1


async def test_an_end_that_comes_while_words_are_written_repeats_none() -> None:
    client, _ = await passed(Engine(ONE + DONE, b"x", b""), slow=ONE + DONE)
    assert client.written == [(ONE + DONE, False), (b"", True)]


@pytest.mark.parametrize("words", [(ONE, None), (ONE, b"data: 2", None), (ONE + b"data: 2", b"")])
async def test_half_a_line_is_never_passed_and_the_end_is_not_told(words: tuple[bytes | None, ...]) -> None:
    client, _ = await passed(Engine(*words))
    assert client.written == [(ONE, False)]
    assert client.failed is not None
    assert client.failed.code == "engine_lost"


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Streamed:
    """An answer that is said by hand, over a connection that is real but for its wire."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.told = 0
        self.upstream = Upstream(Turns(asyncio.get_running_loop().call_soon))
        self.upstream.connection_made(cast(asyncio.Transport, SimpleNamespace(write=lambda data: None)))

    async def run(self) -> None:
        await self.upstream.ask(b"head", b"")
        await relay(self.upstream, self.client, "m", self._first)  # type: ignore[arg-type]

    def _first(self) -> None:
        self.told += 1

    async def says(self, *words: bytes) -> None:
        for word in words:
            self.upstream.data_received(b"%x\r\n%b\r\n" % (len(word), word))
        for _ in range(9):
            await asyncio.sleep(0)


async def test_events_that_come_one_by_one_go_on_one_by_one_in_whole_lines() -> None:
    client = Client()
    stream = Streamed(client)
    running = asyncio.create_task(stream.run())
    await asyncio.sleep(0)
    stream.upstream.data_received(HEAD)
    await stream.says()
    assert stream.told == 0
    await stream.says(ONE[:4])
    assert (client.written, stream.told) == ([], 0)
    await stream.says(ONE[4:])
    await stream.says(ONE, ONE)
    assert (client.written, stream.told) == ([(ONE, False), (ONE + ONE, False)], 1)
    await stream.says(DONE, b"")
    await running
    assert client.written[2:] == [(DONE, True)]
    assert (client.failed, stream.told) == (None, 1)


async def test_a_client_that_does_not_read_is_waited_for_and_misses_nothing() -> None:
    client = Client(slow=ONE)
    stream = Streamed(client)
    running = asyncio.create_task(stream.run())
    await asyncio.sleep(0)
    stream.upstream.data_received(HEAD)
    await stream.says()
    await stream.says(ONE)
    await stream.says(DONE[:8])
    await stream.says(DONE[8:], b"")
    assert client.written == [(ONE, False)]
    client.reads.set()
    await running
    assert client.written == [(ONE, False), (DONE, True)]
    assert client.failed is None
