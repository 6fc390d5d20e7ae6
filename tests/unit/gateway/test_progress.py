"""A client that asks is told how its model wakes, in comments of the stream that it asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientError, ClientResponse, web

from coordinator.core.commands import Refuse
from coordinator.core.model import ModelId
from coordinator.gateway import reply
from coordinator.gateway.reply import Phases
from tests.helpers.gateway import Bench, gateway
from tests.helpers.openai_stub import OpenAIStub, begin_stream, serving

ASKS = {"X-VNPU-Progress": "1"}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply, "FIRST_S", 0.001)
    monkeypatch.setattr(reply, "EVERY_S", 0.001)


@asynccontextmanager
async def waiting(bench: Bench, path: str = "/v1/completions", **fields: object) -> AsyncIterator[ClientResponse]:
    """A request whose client has read the status, while its model sleeps."""
    asked = {"model": "m", "prompt": "x", "stream": True, **fields}
    async with asyncio.timeout(60), bench.post(asked, path, ASKS) as answer:
        yield answer


async def news(answer: ClientResponse) -> dict[str, Any]:
    """The next comment."""
    line = await answer.content.readline()
    assert line.startswith(b": vnpu ")
    assert await answer.content.readline() == b"\n"
    told: dict[str, Any] = json.loads(line.removeprefix(b": vnpu "))
    return told


async def rest(answer: ClientResponse) -> tuple[bytes, bool]:
    """(all that is no comment, whether it ended as an answer does)."""
    got = b""
    try:
        async for line in answer.content:
            got += b"" if line.startswith(b":") else line
    except ClientError:
        return got, False
    return got, True


async def test_news_come_until_the_answer_does() -> None:
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.known.phases_now = {"m": "restoring"}
        bench.route("m")
        async with waiting(bench) as answer:
            assert (answer.status, answer.content_type) == (200, "text/event-stream")
            assert answer.headers["Cache-Control"] == "no-cache"
            assert answer.headers["X-Request-Id"]
            first, second = await news(answer), await news(answer)
            assert (first["model"], first["phase"], first["waiting"]) == ("m", "restoring", 1)
            assert second["waited_s"] >= first["waited_s"] > 0
            bench.route("m", stub.url)
            got, whole = await rest(answer)
    assert whole
    assert got.count(b"stub-") == 3
    assert got.endswith(b"data: [DONE]\n\n")


async def test_no_news_among_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply, "EVERY_S", 0.0)

    async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin_stream(request)
        await response.write(b"data: first\n\n")
        for _ in range(300):  # turns of the loop that the gateway has too
            await asyncio.sleep(0)
        await response.write(b"data: [DONE]\n\n")
        return response

    async with serving(OpenAIStub("e", slow)) as stub, gateway() as bench:
        bench.route("m")
        async with waiting(bench) as answer:
            await news(answer)
            bench.route("m", stub.url)
            got = await answer.read()
    assert got[got.index(b"data: first") :] == b"data: first\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize(
    ("headers", "fields"),
    [({}, {"stream": True}), (ASKS, {}), (ASKS, {"stream": False}), ({"X-VNPU-Progress": "0"}, {})],
)
async def test_who_does_not_ask_for_both_is_told_nothing(headers: dict[str, str], fields: dict[str, object]) -> None:
    async with gateway() as bench:
        bench.route("m")
        bench.known.max_wait_s = 0.1
        async with bench.post({"model": "m", "prompt": "x", **fields}, headers=headers) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "model_wait_timeout")


async def test_a_model_that_is_there_answers_with_its_own_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply, "FIRST_S", 3600.0)

    async def refuse(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": {"message": "too long"}}, status=400)

    async with serving(OpenAIStub("e", refuse)) as stub, gateway() as bench:
        bench.route("m", stub.url)
        async with waiting(bench) as answer:
            assert answer.status == 400


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses"])
async def test_what_goes_wrong_after_news_is_an_error_event_and_no_success(path: str) -> None:
    async with gateway() as bench:
        bench.route("m")
        async with waiting(bench, path) as answer:
            await news(answer)
            bench.gateway.refuse(Refuse(ModelId("m"), "no room for it", 3.0))
            got, whole = await rest(answer)
        _, counted = await bench.get("/metrics")
    assert not whole
    data = got.strip().splitlines()[-1].removeprefix(b"data: ")
    assert json.loads(data)["error"]["message"] == "no room for it"
    assert (b"event: error" in got) == (path == "/v1/responses")
    assert b'status="503"' in counted


async def test_an_engines_refusal_after_news_keeps_its_words() -> None:
    async def refuse(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": {"message": "too many\ntokens"}}, status=400)

    async with serving(OpenAIStub("e", refuse)) as stub, gateway() as bench:
        bench.route("m")
        async with waiting(bench) as answer:
            await news(answer)
            bench.route("m", stub.url)
            got, whole = await rest(answer)
    error = json.loads(got.strip().removeprefix(b"data: "))["error"]
    assert (whole, error["message"], error["code"]) == (False, "too many\ntokens", "engine_refused")


async def test_a_client_that_leaves_amid_news_frees_its_place() -> None:
    async with gateway() as bench:
        bench.route("m")
        async with waiting(bench) as answer:
            await news(answer)
            answer.close()
            await bench.until_waiting("m", 0)


async def test_the_end_is_told_to_who_waits() -> None:
    async with gateway() as bench:
        bench.route("m")
        async with waiting(bench) as answer:
            await news(answer)
            await bench.gateway.drain()
            got, whole = await rest(answer)
    assert (b"gateway_closing" in got, whole) == (True, False)


def test_however_many_ask_phases_are_looked_up_now_and_then() -> None:
    now, looked = 0.0, 0

    def look() -> dict[str, str]:
        nonlocal looked
        looked += 1
        return {"m": f"phase {looked}"}

    phases = Phases(look, lambda: now)
    assert [phases.of("m") for _ in range(100)] == ["phase 1"] * 100
    assert phases.of("other") == "stopped"
    now = reply.FRESH_S
    assert phases.of("m") == "phase 2"
