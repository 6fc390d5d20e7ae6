"""The gateway's parts by themselves."""

from __future__ import annotations

import asyncio
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.core.commands import Endpoint, Route
from coordinator.core.model import EngineId, ModelId
from coordinator.gateway.body import Body, Budget, parse
from coordinator.gateway.call import AT_ONCE, allowed_wait, ids
from coordinator.gateway.problem import Problem, closing
from coordinator.gateway.routes import GONE_GRACE_S, Balancer, Routes
from coordinator.gateway.sse import LineRelay
from coordinator.gateway.waiting import WaitingRoom

M = ModelId("m")


@given(st.lists(st.binary(max_size=20) | st.sampled_from([b"\n", b"data: x\n\n", b"data: [DONE]\n\n"])))
def test_a_line_relay_changes_no_byte_and_sends_whole_lines(chunks: list[bytes]) -> None:
    relay = LineRelay()
    sent = [relay.feed(chunk) for chunk in chunks]
    assert all(not each or each.endswith(b"\n") for each in sent)
    assert b"".join(sent) + relay.finish() == b"".join(chunks)
    assert relay.complete == b"".join(chunks).rstrip().endswith(b"data: [DONE]")


def test_a_line_without_end_is_not_kept_for_ever() -> None:
    relay = LineRelay(limit=10)
    assert relay.feed(b"x" * 20) == b"x" * 20


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "x", ""])
def test_a_nonsensical_deadline_is_the_limit(text: str) -> None:
    assert allowed_wait({"X-VNPU-Deadline": text}, 30.0) == 30.0


def test_two_requests_with_one_id_have_two_ids_at_the_engine() -> None:
    headers = {"X-Request-Id": "same"}
    assert ids(headers)[0] == ids(headers)[0] == "same"
    minted = [ids(headers)[1] for _ in range(3 * AT_ONCE)]
    assert len(set(minted)) == 3 * AT_ONCE
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in minted)


def test_a_repeated_key_means_one_thing_to_us_and_to_the_engine() -> None:
    ask = parse(b'{"model": "a", "model": "b", "prompt": 1}')
    assert ask.model == "b"
    assert ask.encode("b") == b'{"model":"b","prompt":1}'


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_problem(data: bytes) -> None:
    try:
        parse(data)
    except Problem as problem:
        if problem.status != 400:
            raise


async def test_a_body_gives_its_budget_back() -> None:
    async def chunks(*sizes: int):  # type: ignore[no-untyped-def]
        for size in sizes:
            yield b"x" * size

    budget = Budget(100)
    body = Body(budget, 80)
    assert len(await body.read(chunks(30, 30))) == 60
    assert budget.held == 60
    other = Body(budget, 80)
    with pytest.raises(Problem):
        await other.read(chunks(30, 30))
    other.release()
    body.release()
    assert budget.held == 0


def test_routes_know_names_then_aliases_then_what_was_just_there() -> None:
    routes = Routes(["configured"])
    routes.apply(Route(M, (), ("other", "configured")), 0.0)
    assert routes.resolve("configured", 0.0) == "configured"
    assert routes.resolve("other", 0.0) == M
    assert routes.resolve("nowhere", 0.0) is None
    routes.apply(Route(M, (), gone=True), 10.0)
    assert routes.resolve("other", 10.0) is None
    assert routes.resolve("m", 10.0 + GONE_GRACE_S - 1) == M
    assert routes.resolve("m", 10.0 + GONE_GRACE_S) is None


def test_a_configured_alias_is_there_before_its_engine_and_goes_before_what_engines_say() -> None:
    routes = Routes(["m", "n"], aliases={"small": "m"})
    assert routes.resolve("small", 0.0) == "m"
    routes.apply(Route(ModelId("n"), (), ("small", "fast", "m")), 0.0)
    assert (routes.resolve("small", 0.0), routes.resolve("fast", 0.0), routes.resolve("m", 0.0)) == ("m", "n", "m")
    assert (routes.aliases("m"), "small" in routes.aliases("n")) == (("small",), False)


def test_a_balancer_takes_turns_among_equals_and_forgets_what_left() -> None:
    a, b = Endpoint(EngineId("a"), "http://a"), Endpoint(EngineId("b"), "http://b")
    balancer = Balancer()
    taken = []
    for _ in range(4):
        chosen = balancer.choose((a, b), 0.0)
        assert chosen is not None
        taken.append(chosen)
        with balancer.using(chosen):
            other = balancer.choose((a, b), 0.0)
            assert other not in (None, chosen)
    assert taken == [a, b, a, b]
    balancer.avoid(a, 5.0)
    assert balancer.choose((a,), 4.0) is None
    assert balancer.retry_at((a,)) == 5.0
    assert balancer.choose((a,), 5.0) == a
    balancer.keep([b])
    assert balancer.choose((a,), 4.0) == a


async def test_a_place_is_freed_however_its_holder_ends() -> None:
    heard: list[int] = []
    room = WaitingRoom(2, lambda model, waiting: heard.append(waiting))
    with pytest.raises(ZeroDivisionError), room.place("m"):
        raise ZeroDivisionError
    with room.place("m"), room.place("m"):
        with pytest.raises(Problem), room.place("m"):
            raise AssertionError("the queue was full")
        assert room.waiting("m") == 2
    assert heard == [1, 0, 1, 2, 1, 0]
    assert room.demand == {}


async def test_a_place_is_called_and_refused() -> None:
    room = WaitingRoom(9, lambda model, waiting: None)
    with room.place("m") as first, room.place("m") as second:
        assert not await first.wait(0.0)
        room.call("m")
        assert await first.wait(10.0)
        assert await second.wait(10.0)
        assert not await first.wait(0.0)
        room.refuse_all(closing)
        for place in (first, second):
            with pytest.raises(Problem):
                await place.wait(10.0)


async def test_who_was_refused_waits_no_more_though_he_has_not_left_yet() -> None:
    heard: list[int] = []
    room = WaitingRoom(1, lambda model, waiting: heard.append(waiting))
    with room.place("m") as refused:
        room.refuse("m", closing)
        with room.place("m") as new:  # there is room for it, and it is new demand
            with pytest.raises(Problem):
                await refused.wait(10.0)
            assert not await new.wait(0.0)
            assert room.demand == {"m": 1}
    assert heard == [1, 0, 1, 0]
    assert room.demand == {}


async def test_who_is_refused_right_after_a_call_is_refused() -> None:
    """An engine dies: its route ends, and before anyone has looked again the model is refused."""
    room = WaitingRoom(9, lambda model, waiting: None)
    with room.place("m") as place:
        waiting = asyncio.ensure_future(place.wait(10.0))
        await asyncio.sleep(0)
        room.call("m")
        room.refuse("m", closing)
        with pytest.raises(Problem):
            await waiting


async def test_a_refusal_that_nobody_waits_for_is_no_noise() -> None:
    room = WaitingRoom(9, lambda model, waiting: None)
    with room.place("m"):
        room.refuse("m", closing)
    await asyncio.sleep(0)
