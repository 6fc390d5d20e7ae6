"""New requests first: whose turn it is, and what wakes the reader of an answer."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.http1.turns import SHARE, Turns
from coordinator.http1.upstream import BrokenOff, Upstream

FIRST = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
END = b"0\r\n\r\n"


class Loop:
    """Looks at the network when it is told to."""

    def __init__(self) -> None:
        self._soon: deque[Callable[[], None]] = deque()

    def call_soon(self, call: Callable[[], None]) -> None:
        self._soon.append(call)

    def look(self) -> None:
        for _ in range(len(self._soon)):
            self._soon.popleft()()

    @property
    def rests(self) -> bool:
        return not self._soon


@given(st.lists(st.integers(0, 40), max_size=30))
def test_everyone_has_a_turn_in_order_and_few_go_at_each_look(comers: list[int]) -> None:
    loop, went, sent = Loop(), list[int](), 0
    turns = Turns(loop.call_soon)
    for count in comers:
        for n in range(sent, sent + count):
            turns.queue(lambda n=n: went.append(n))  # type: ignore[misc]
        sent += count
        before, waited = len(went), sent - len(went)
        loop.look()
        assert len(went) - before == (1 + (waited - 1) // SHARE if waited else 0)
    looks = 0
    while not loop.rests:
        loop.look()
        looks += 1
    assert went == list(range(sent))
    assert looks <= SHARE * (1 + math.log(max(1, sent)))


def test_one_that_queues_again_in_its_turn_waits_for_the_next() -> None:
    loop, went = Loop(), list[str]()
    turns = Turns(loop.call_soon)

    def twice() -> None:
        went.append("first")
        turns.queue(lambda: went.append("second"))

    turns.queue(twice)
    loop.look()
    assert went == ["first"]
    loop.look()
    assert went == ["first", "second"]
    assert loop.rests


class Wire:
    """A transport that takes everything."""

    def __init__(self) -> None:
        self.aborted = False

    def write(self, data: bytes) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


class Asked:
    """A request whose answer is said by hand, and what its reader has read."""

    def __init__(self, turns: Turns) -> None:
        self.upstream = Upstream(turns)
        self.upstream.connection_made(cast(asyncio.Transport, Wire()))
        self.read: list[bytes] = []
        self.taken: list[bytes] = []
        self.woken = 0

    async def run(self) -> None:
        await self.upstream.ask(b"head", b"")
        while data := await self.upstream.read():
            self.read.append(data)

    async def run_on(self) -> None:
        """What comes while its reader waits goes to `take`."""
        await self.upstream.ask(b"head", b"")
        while not self.upstream.over:
            if not self.upstream.ready:
                self.woken += 1
                await self.upstream.hand_on(self.take)
            else:
                self.read.append(await self.upstream.read())

    def take(self, data: bytes) -> bool:
        self.taken.append(data)
        if data == b"!":
            raise ZeroDivisionError
        return data != b"?"


async def settled() -> None:
    """Whoever was woken has run."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def loop() -> Loop:
    return Loop()


async def test_what_comes_before_its_turn_goes_on_together_and_in_order_and_nothing_remains(loop: Loop) -> None:
    asked = Asked(Turns(loop.call_soon))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asked.run())
        await settled()
        asked.upstream.data_received(FIRST)
        await settled()
        assert asked.read == []
        loop.look()
        await settled()
        assert asked.read == [b"a"]
        asked.upstream.data_received(b"1\r\nb\r\n")
        asked.upstream.data_received(b"1\r\nc\r\n")
        await settled()
        assert asked.read == [b"a"]
        loop.look()
        await settled()
        assert asked.read == [b"a", b"bc"]
        asked.upstream.data_received(b"1\r\nd\r\n")
        asked.upstream.data_received(END)
        loop.look()
    assert asked.read == [b"a", b"bc", b"d"]
    assert loop.rests


async def test_one_that_comes_alone_waits_for_one_look_whatever_came_before(loop: Loop) -> None:
    asked = Asked(Turns(loop.call_soon))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asked.run())
        await settled()
        for n, data in enumerate((FIRST, b"1\r\nb\r\n", b"1\r\nc\r\n"), start=1):
            asked.upstream.data_received(data)
            loop.look()
            await settled()
            assert len(asked.read) == n
        asked.upstream.data_received(END)
        loop.look()


async def test_answers_that_come_together_go_on_a_few_at_a_look_and_all_in_the_end(loop: Loop) -> None:
    turns = Turns(loop.call_soon)
    asked = [Asked(turns) for _ in range(20)]
    async with asyncio.TaskGroup() as tasks:
        for each in asked:
            tasks.create_task(each.run())
        await settled()
        for each in asked:
            each.upstream.data_received(FIRST)
            each.upstream.data_received(END)
        loop.look()
        await settled()
        assert [each.read == [b"a"] for each in asked] == [True] * 5 + [False] * 15
        while not loop.rests:
            loop.look()
    assert all(each.read == [b"a"] for each in asked)


async def test_the_next_answer_on_a_connection_has_turns_of_its_own(loop: Loop) -> None:
    asked = Asked(Turns(loop.call_soon))
    first = asyncio.create_task(asked.run())
    await settled()
    asked.upstream.data_received(FIRST)
    loop.look()
    await settled()
    asked.upstream.data_received(b"1\r\nb\r\n")
    asked.upstream.data_received(END)
    loop.look()
    await first
    second = asyncio.create_task(asked.run())
    await settled()
    asked.upstream.data_received(FIRST)
    asked.upstream.data_received(END)
    loop.look()
    await second
    assert asked.read == [b"a", b"b", b"a"]
    assert loop.rests


async def test_a_break_is_told_at_once(loop: Loop) -> None:
    asked = Asked(Turns(loop.call_soon))
    running = asyncio.create_task(asked.run())
    await settled()
    asked.upstream.data_received(FIRST)
    asked.upstream.connection_lost(None)
    with pytest.raises(BrokenOff):
        await running
    assert asked.read == [b"a"]


async def test_a_turn_of_one_who_has_left_wakes_nobody(loop: Loop) -> None:
    asked = Asked(Turns(loop.call_soon))
    running = asyncio.create_task(asked.run())
    await settled()
    asked.upstream.data_received(FIRST)
    running.cancel()
    await asyncio.wait((running,))
    asked.upstream.fail("nobody reads it")
    loop.look()
    assert loop.rests


async def handing_on(loop: Loop) -> tuple[Asked, asyncio.Task[None]]:
    """One whose first words were read, and whose reader waits for what `take` leaves to it."""
    asked = Asked(Turns(loop.call_soon))
    running = asyncio.create_task(asked.run_on())
    await settled()
    await said(loop, asked, FIRST)
    assert (asked.read, asked.taken, asked.woken) == ([b"a"], [], 1)
    return asked, running


async def said(loop: Loop, asked: Asked, *data: bytes) -> None:
    for each in data:
        asked.upstream.data_received(each)
    loop.look()
    await settled()


async def test_words_go_on_in_their_turn_without_their_reader_and_the_end_is_left_to_it(loop: Loop) -> None:
    asked, running = await handing_on(loop)
    asked.upstream.data_received(b"1\r\nb\r\n")
    await settled()
    assert asked.taken == []
    loop.look()
    assert asked.taken == [b"b"]
    await said(loop, asked, b"1\r\nc\r\n", b"1\r\nd\r\n1\r")
    await said(loop, asked, b"\n")  # half a chunk is no words
    await said(loop, asked, b"e\r\n")
    assert (asked.taken, asked.read) == ([b"b", b"cd", b"e"], [b"a"])
    await said(loop, asked, b"1\r\nf\r\n", END)
    await running
    assert (asked.taken, asked.read) == ([b"b", b"cd", b"e"], [b"a", b"f"])
    assert loop.rests


async def test_words_wait_for_their_reader_once_no_more_are_taken(loop: Loop) -> None:
    asked, running = await handing_on(loop)
    asked.upstream.data_received(b"1\r\n?\r\n")
    loop.look()
    asked.upstream.data_received(b"1\r\nb\r\n")
    await settled()
    assert (asked.taken, asked.read) == ([b"?"], [b"a", b"b"])
    loop.look()
    await settled()
    assert asked.woken == 2
    await said(loop, asked, END)
    await running
    assert (asked.taken, asked.read) == ([b"?"], [b"a", b"b"])


async def test_their_reader_is_woken_once_no_more_are_taken_though_nothing_follows(loop: Loop) -> None:
    asked, running = await handing_on(loop)
    await said(loop, asked, b"1\r\n?\r\n")
    assert asked.woken == 2
    await said(loop, asked, b"1\r\nb\r\n")
    assert asked.taken == [b"?", b"b"]
    await said(loop, asked, END)
    await running


async def test_the_next_answer_on_a_connection_does_not_go_where_the_last_one_went(loop: Loop) -> None:
    asked, running = await handing_on(loop)
    await said(loop, asked, b"1\r\nb\r\n", END)
    await running
    running = asyncio.create_task(asked.run())
    await settled()
    await said(loop, asked, FIRST)
    await said(loop, asked, END)
    await running
    assert (asked.taken, asked.read) == ([], [b"a", b"b", b"a"])


async def test_what_goes_wrong_where_words_go_on_is_their_readers_matter(loop: Loop) -> None:
    asked, running = await handing_on(loop)
    await said(loop, asked, b"1\r\n!\r\n")
    with pytest.raises(ZeroDivisionError):
        await running


async def test_a_break_comes_after_the_words_before_it(loop: Loop) -> None:
    asked, running = await handing_on(loop)
    asked.upstream.data_received(b"1\r\nb\r\n")
    asked.upstream.connection_lost(None)
    with pytest.raises(BrokenOff):
        await running
    assert asked.taken + asked.read == [b"a", b"b"]


async def test_an_engine_is_silent_only_while_nothing_of_it_waits_for_its_turn(loop: Loop) -> None:
    asked, running = await handing_on(loop)
    for words in (b"1\r\nb\r\n", b"1", b"\r\nc\r\n"):
        before = asked.upstream.waits_since
        assert before is not None
        asked.upstream.data_received(words)
        assert asked.upstream.waits_since is None
        loop.look()
        await settled()
        assert asked.upstream.waits_since is not None
        assert asked.upstream.waits_since >= before
    await said(loop, asked, END)
    await running
    assert asked.upstream.waits_since is None
