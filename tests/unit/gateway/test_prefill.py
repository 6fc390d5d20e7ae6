"""A model behind two groups: its prompt goes to a prefill engine, the ticket with the request to a decode engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from coordinator.gateway import prefill
from tests.helpers.gateway import Bench, gateway
from tests.helpers.openai_stub import OpenAIStub, serving

GROUPS = {"prefill": {"m": "m@prefill"}, "models": ("m", "m@prefill")}
CHAT = "/v1/chat/completions"


async def ticket(request: web.Request, body: dict[str, Any]) -> web.Response:
    return web.json_response({"choices": [{"text": "x"}], "kv_transfer_params": {"vnpu": "T" * 40}})


@asynccontextmanager
async def pair(**behave: Any) -> AsyncIterator[tuple[OpenAIStub, OpenAIStub, Bench]]:
    """A prefill and a decode engine that have registered, and a gateway."""
    first, second = OpenAIStub("prefill", behave.get("behave", ticket)), OpenAIStub("decode")
    async with serving(first), serving(second), gateway(**GROUPS) as bench:
        bench.route("m@prefill", first.url)
        bench.route("m", second.url)
        yield first, second, bench


async def test_the_ticket_goes_with_the_request() -> None:
    async with pair() as (first, second, bench):
        status, answer = await bench.ask("m", max_tokens=9, kv_transfer_params={"vnpu": "forged"}, stop=["x"])
        assert (status, answer["choices"][0]["text"]) == (200, "from decode")
    (asked,), (told,) = first.seen, second.seen
    assert (asked.body["model"], asked.body["prompt"], asked.body["max_tokens"]) == ("m@prefill", "hello", 1)
    assert asked.body["kv_transfer_params"] == {"vnpu": "offer"}
    assert (asked.body["stream"], asked.body["ignore_eos"], "stop" in asked.body) == (False, True, False)
    assert (told.body["model"], told.body["max_tokens"], told.body["stop"]) == ("m", 9, ["x"])
    assert told.body["kv_transfer_params"] == {"vnpu": "T" * 40}


async def test_a_chat_has_the_same_prompt_on_both_sides() -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [{"type": "function"}]}
    more = {"max_completion_tokens": 7, "stream": True, "stream_options": {"include_usage": True}, "seed": 3}
    async with pair() as (first, second, bench), bench.post({**asked, **more}, CHAT) as answer:
        assert b"[DONE]" in await answer.read()
    assert {name: first.seen[0].body[name] for name in ("messages", "tools", "seed")} == {
        "messages": asked["messages"],
        "tools": asked["tools"],
        "seed": 3,
    }
    assert (first.seen[0].path, first.seen[0].body["max_completion_tokens"]) == (CHAT, 1)
    assert "stream_options" not in first.seen[0].body
    assert second.seen[0].body["kv_transfer_params"] == {"vnpu": "T" * 40}


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"best_of": 3},
        {"echo": True},
        {"prompt_logprobs": 1},
        {"use_beam_search": True},
        {"prompt": ["a", "b"]},
        {"prompt": [[1, 2], [3]]},
    ],
)
async def test_some_requests_are_never_split(fields: dict[str, Any]) -> None:
    async with pair() as (first, second, bench):
        assert (await bench.ask("m", **fields))[0] == 200
        assert (await bench.ask("m", prompt=[1, 2, 3], n=1, echo=False, best_of=None))[0] == 200
    assert len(first.seen) == 1
    assert "kv_transfer_params" not in second.seen[0].body
    assert "kv_transfer_params" in second.seen[1].body


async def test_only_completions_are_split() -> None:
    async with pair() as (first, second, bench), bench.post({"model": "m", "input": "x"}, "/v1/embeddings") as answer:
        assert answer.status == 200
    assert (first.seen, len(second.seen)) == ([], 1)


async def refused(request: web.Request, body: dict[str, Any]) -> web.Response:
    return web.json_response({"error": {"message": "no"}}, status=400)


async def nothing(request: web.Request, body: dict[str, Any]) -> web.Response:
    return web.json_response({"choices": [], "kv_transfer_params": None})


async def nonsense(request: web.Request, body: dict[str, Any]) -> web.Response:
    return web.Response(body=b"[1")


async def large(request: web.Request, body: dict[str, Any]) -> web.Response:
    return web.json_response({"kv_transfer_params": {"vnpu": "T" * (prefill.MAX_TICKET + 1)}})


async def broken(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b"{")
    assert request.transport is not None
    request.transport.close()
    return response


@pytest.mark.parametrize("behave", [refused, nothing, nonsense, large, broken])
async def test_a_prefill_engine_that_fails_costs_time_only(behave: Any) -> None:
    async with pair(behave=behave) as (first, second, bench):
        assert (await bench.ask("m"))[1]["choices"][0]["text"] == "from decode"
    assert len(first.seen) == 1
    assert "kv_transfer_params" not in second.seen[0].body


async def test_without_a_prefill_engine_it_is_plain_decode() -> None:
    """Never registered; gone; away for longer than one waits."""
    async with serving(OpenAIStub()) as stub, gateway(**GROUPS) as bench:
        bench.route("m", stub.url)
        assert (await bench.ask("m"))[0] == 200
        bench.route("m@prefill", "http://127.0.0.1:9")
        bench.route("m@prefill", gone=True)
        assert (await bench.ask("m"))[0] == 200
        assert bench.heard == []
        bench.route("m@prefill")
        bench.known.max_wait_s = 0.05
        assert (await bench.ask("m"))[0] == 200
        assert ("m@prefill", 1) in bench.heard
    assert all("kv_transfer_params" not in seen.body for seen in stub.seen)


async def test_both_groups_are_wanted_at_once() -> None:
    """Neither waits for the other's restore."""
    async with pair() as (first, second, bench):
        bench.route("m@prefill")
        bench.route("m")
        asking = asyncio.create_task(bench.ask("m"))
        await bench.until(lambda: bench.demand.get("m") == bench.demand.get("m@prefill") == 1)
        bench.route("m@prefill", first.url)
        await bench.until_waiting("m@prefill", 0)
        bench.route("m", second.url)
        assert (await asking)[1]["choices"][0]["text"] == "from decode"
        assert bench.demand == {"m": 0, "m@prefill": 0}
    assert second.seen[0].body["kv_transfer_params"] == {"vnpu": "T" * 40}


async def test_no_client_can_name_the_prefill_group() -> None:
    async with pair() as (first, _, bench):
        assert (await bench.ask("m@prefill"))[0] == 404
        bench.route("m@prefill", first.url, aliases=("sneaky",))
        assert (await bench.ask("sneaky"))[0] == 404
        _, body = await bench.get("/v1/models")
        assert b"@prefill" not in body
    assert first.seen == []


async def test_a_client_that_leaves_is_not_prefilled_on() -> None:
    async def hang(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with pair(behave=hang) as (first, second, bench):
        asking = asyncio.create_task(bench.ask("m"))
        await first.until(lambda: bool(first.seen))
        asking.cancel()
        await first.until(lambda: first.cancelled == 1)
    assert second.seen == []
