"""How a stream is passed on: what has come together goes together, nothing twice, the end with the last words."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from coordinator.gateway.problem import Problem
from coordinator.gateway.relay import relay
from coordinator.http1.upstream import BrokenOff

ONE, DONE = b"data: 1\n\n", b"data: [DONE]\n\n"


class Engine:
    """Says `words` one after the other; an empty one is the end, none breaks it off."""

    status = 200
    ready = True

    def __init__(self, *words: bytes | None) -> None:
        self.headers = {"Content-Type": "text/event-stream"}
        self.words = list(words)

    @property
    def over(self) -> bool:
        return self.words == [b""] or not self.words

    async def read(self) -> bytes:
        word = self.words.pop(0)
        if word is None:
            raise BrokenOff("it died")
        return word


class Client:
    """What is written, and whether it was the last; the engine ends while the word `slow` is written."""

    request = SimpleNamespace(path="/v1/completions")

    def __init__(self, engine: Engine, slow: bytes = b"") -> None:
        self.engine = engine
        self.slow = slow
        self.written: list[tuple[bytes, bool]] = []
        self.failed: Problem | None = None

    async def open(self, status: int, headers: object, *, events: bool) -> None:
        pass

    async def write(self, data: bytes, *, last: bool = False) -> None:
        self.written.append((data, last))
        if data == self.slow:
            self.engine.words.clear()

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
