"""Requests through a gateway: what goes through, what is held, how each ends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession, web

from coordinator.core.commands import Refuse
from coordinator.core.model import ModelId
from coordinator.gateway import reply
from coordinator.gateway.settings import Names
from coordinator.supervise.ports import free_port
from tests.helpers.gateway import Bench, gateway
from tests.helpers.openai_stub import OpenAIStub, begin_stream, event, serving, stream


def unused_url() -> str:
    """Nobody listens there."""
    return f"http://127.0.0.1:{free_port()}"


async def read_stream(bench: Bench, model: str, **fields: object) -> tuple[list[bytes], BaseException | None]:
    """The lines of a stream, and the error that ended it."""
    lines: list[bytes] = []
    async with bench.post({"model": model, "prompt": "x", "stream": True, **fields}) as answer:
        assert answer.status == 200
        try:
            async for line in answer.content:
                lines.append(line)  # noqa: PERF401 - those before the error count
        except ClientError as error:
            return lines, error
    return lines, None


async def test_an_answer_goes_through_with_the_clients_request_id_and_another_for_the_engine() -> None:
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("m", stub.url)
        async with bench.post({"model": "m", "prompt": "x"}, headers={"X-Request-Id": "mine-1"}) as answer:
            assert answer.status == 200
            assert answer.headers["X-Request-Id"] == "mine-1"
            assert (await answer.json())["choices"][0]["text"] == "from stub"
    seen = stub.seen[0]
    assert seen.path == "/v1/completions"
    assert seen.headers["X-Request-Id"] not in ("", "mine-1")
    assert 0 < float(seen.headers["X-VNPU-Deadline"]) <= 60
    assert bench.heard == []


async def test_a_request_id_that_looks_like_an_address_is_not_echoed_and_one_is_minted() -> None:
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("m", stub.url)
        async with bench.post({"model": "m"}, headers={"X-Request-Id": "___addr/1.2.3.4:1"}) as answer:
            assert answer.headers["X-Request-Id"] not in ("", "___addr/1.2.3.4:1")


async def test_only_harmless_headers_reach_an_engine() -> None:
    sent = {"X-Data-Parallel-Rank": "3", "Cookie": "a=b", "Authorization": "Bearer k", "X-Forwarded-For": "1.1.1.1"}
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("m", stub.url)
        async with bench.post({"model": "m"}, headers=sent) as answer:
            assert answer.status == 200
    names = {name.lower() for name in stub.seen[0].headers}
    assert "authorization" in names
    assert not names & {"x-data-parallel-rank", "cookie", "x-forwarded-for"}


async def test_kv_transfer_params_never_reach_an_engine() -> None:
    body = b"""{"model": "m", "kv_transfer_params": {"remote_host": "x"}, "kv_transfer_param\\u0073": 1,
        "vllm_xargs": {"kv_transfer_params": "y", "kept": 1}, "prompt": "p"}"""
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("m", stub.url)
        async with bench.post(body) as answer:
            assert answer.status == 200
    assert stub.seen[0].body == {"model": "m", "vllm_xargs": {"kept": 1}, "prompt": "p"}


async def test_an_alias_and_an_id_with_slashes_are_routed() -> None:
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("org/model", stub.url, aliases=("small",))
        assert (await bench.ask("small"))[0] == 200
        assert (await bench.ask("org/model"))[0] == 200
        for path in ("/v1/models/org/model", "/v1/models/org%2Fmodel", "/v1/models/small"):
            answer, text = await bench.get(path)
            assert answer.status == 200
            assert json.loads(text)["id"] == "org/model"
    assert [seen.body["model"] for seen in stub.seen] == ["org/model", "org/model"]


async def test_names_change_while_it_runs_and_nobody_can_name_what_has_left() -> None:
    async with serving(OpenAIStub()) as stub, gateway(models=("old",)) as bench:
        bench.route("old", stub.url, aliases=("alias",))
        assert (await bench.ask("alias"))[0] == 200
        bench.gateway.rename(Names(models=("new",), aliases={"other": "new"}, left=frozenset({"old"})))
        assert [(await bench.ask(name))[0] for name in ("old", "alias")] == [404, 404]
        assert json.loads((await bench.get("/v1/models"))[1])["data"][0]["id"] == "new"
        bench.route("new", stub.url)
        assert [(await bench.ask(name))[0] for name in ("new", "other")] == [200, 200]


async def test_an_unknown_model_is_told_what_exists() -> None:
    async with gateway(models=("configured",)) as bench:
        bench.route("known")
        status, answer = await bench.ask("nowhere")
        assert status == 404
        assert answer["error"]["code"] == "model_not_found"
        assert "configured, known" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[1]", 400),
        (b'{"model": 3}', 400),
        (b'{"prompt": "x"}', 400),
        (b'{"model": "m", "n": 1000000000}', 400),
        (b'{"model": "m", "n": "x"}', 400),
        (b'{"model": "m", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"model": "m", "prompt": "' + b"x" * 300_000 + b'"}', 413),
    ],
)
async def test_bad_bodies_are_refused_in_openais_shape(body: bytes, status: int) -> None:
    async with gateway(max_body=250_000) as bench:
        bench.route("m", unused_url())
        async with bench.post(body) as answer:
            assert answer.status == status
            assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}


async def test_a_huge_body_is_refused_before_it_is_read() -> None:
    async with gateway(max_body=1000) as bench:
        host, port = bench.gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 1073741824\r\n\r\n".encode()
        )
        assert b"413" in await reader.readline()
        writer.close()


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async with gateway(body_timeout_s=0.05) as bench:
        host, port = bench.gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert b"408" in await reader.readline()
        writer.close()


async def test_too_many_headers_are_refused() -> None:
    async with gateway() as bench:
        host, port = bench.gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        lines = "".join(f"X-{n}: y\r\n" for n in range(10_000))
        writer.write(f"GET /health HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode())
        assert b" 4" in await reader.readline()
        writer.close()


async def test_bodies_beyond_the_budget_are_refused_and_given_back() -> None:
    async with gateway(body_budget=4000) as bench:
        bench.route("m")
        held = asyncio.create_task(bench.ask("m", pad="x" * 3000))
        await bench.until_waiting("m", 1)
        status, answer = await bench.ask("m", pad="x" * 3000)
        assert (status, answer["error"]["code"]) == (503, "gateway_overloaded")
        held.cancel()
        await bench.until_waiting("m", 0)
        async with serving(OpenAIStub()) as stub:
            bench.route("m", stub.url)
            assert (await bench.ask("m", pad="x" * 3000))[0] == 200


async def test_requests_are_held_until_a_route_and_go_in_order_of_arrival() -> None:
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("m")
        asks = []
        for n in range(20):
            asks.append(asyncio.create_task(bench.ask("m", prompt=n)))
            await bench.until_waiting("m", n + 1)
        bench.route("m", stub.url)
        answers = await asyncio.gather(*asks)
        assert [status for status, _ in answers] == [200] * 20
        await bench.until_waiting("m", 0)
        assert max(count for _, count in bench.heard) == 20


async def test_a_full_queue_answers_503_with_retry_after_and_other_models_are_untouched() -> None:
    async with serving(OpenAIStub()) as stub, gateway(max_queue=2) as bench:
        bench.route("m")
        bench.route("other", stub.url)
        held = [asyncio.create_task(bench.ask("m")) for _ in range(2)]
        await bench.until_waiting("m", 2)
        async with bench.post({"model": "m"}) as answer:
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) >= 1
            assert (await answer.json())["error"]["code"] == "queue_full"
        assert (await bench.ask("other"))[0] == 200
        bench.route("m", stub.url)
        assert [status for status, _ in await asyncio.gather(*held)] == [200, 200]


async def test_a_wait_that_is_too_long_ends_in_503() -> None:
    async with gateway() as bench:
        bench.route("m")
        bench.known.max_wait_s = 0.05
        status, answer = await bench.ask("m")
        assert (status, answer["error"]["code"]) == (503, "model_wait_timeout")
        assert bench.demand["m"] == 0


async def test_a_client_may_ask_for_less_patience_but_not_for_more() -> None:
    async with gateway() as bench:
        bench.route("m")
        async with bench.post({"model": "m"}, headers={"X-VNPU-Deadline": "0.05"}) as answer:
            assert answer.status == 503
        bench.known.max_wait_s = 0.05
        async with bench.post({"model": "m"}, headers={"X-VNPU-Deadline": "1e9"}) as answer:
            assert answer.status == 503


async def test_a_client_that_leaves_frees_its_place_at_once() -> None:
    async with gateway(max_queue=1) as bench:
        bench.route("m")
        for _ in range(3):
            asked = asyncio.create_task(bench.ask("m"))
            await bench.until_waiting("m", 1)
            asked.cancel()
            await bench.until_waiting("m", 0)
        assert bench.gateway.demand == {}


async def test_a_refusal_answers_those_who_wait_with_its_reason() -> None:
    async with gateway() as bench:
        bench.route("m")
        asks = [asyncio.create_task(bench.ask("m")) for _ in range(3)]
        await bench.until_waiting("m", 3)
        bench.gateway.refuse(Refuse(ModelId("m"), "every model on the device is pinned", 7))
        for status, answer in await asyncio.gather(*asks):
            assert status == 503
            assert "pinned" in answer["error"]["message"]
        await bench.until_waiting("m", 0)


async def test_the_least_loaded_engine_is_chosen() -> None:
    release = asyncio.Event()

    async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await release.wait()
        return web.json_response({"choices": []})

    async with serving(OpenAIStub("a", slow)) as a, serving(OpenAIStub("b", slow)) as b, gateway() as bench:
        bench.route("m", a.url, b.url)
        asks = [asyncio.create_task(bench.ask("m")) for _ in range(6)]
        await a.until(lambda: len(a.seen) == 3)
        await b.until(lambda: len(b.seen) == 3)
        release.set()
        assert {status for status, _ in await asyncio.gather(*asks)} == {200}


async def test_an_engine_that_takes_no_connection_is_passed_over() -> None:
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("m", unused_url(), stub.url)
        for _ in range(4):
            assert (await bench.ask("m"))[0] == 200
    assert len(stub.seen) == 4


async def test_a_request_waits_again_when_its_only_engine_takes_no_connection() -> None:
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("m", unused_url())
        asked = asyncio.create_task(bench.ask("m"))
        await bench.until_waiting("m", 1)
        bench.route("m", stub.url)
        assert (await asked)[0] == 200


async def test_while_a_model_is_refused_nobody_waits_for_it_and_its_engines_still_serve() -> None:
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("m")
        waiting = asyncio.create_task(bench.ask("m"))
        await bench.until_waiting("m", 1)
        bench.gateway.turn_away(Refuse(ModelId("m"), "it is drained", 7))
        assert (await waiting)[1]["error"]["message"] == "it is drained"
        heard = len(bench.heard)
        async with bench.post({"model": "m", "prompt": "hello"}) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "7")
        assert bench.heard[heard:] == []  # it never was demand
        bench.route("m", stub.url)
        assert (await bench.ask("m"))[0] == 200
        bench.route("m")
        assert bench.gateway.refused == frozenset()
        bench.gateway.turn_away(Refuse(ModelId("m"), "it is drained", 7))
        bench.gateway.admit("m")
        waiting = asyncio.create_task(bench.ask("m"))
        await bench.until_waiting("m", 1)
        bench.route("m", stub.url)
        assert (await waiting)[0] == 200


async def test_by_news_that_may_be_old_nobody_is_turned_away() -> None:
    async with gateway() as bench:
        bench.route("m")
        bench.gateway.turn_away(Refuse(ModelId("m"), "it is drained", 7))
        bench.gateway.heed(False)
        waiting = asyncio.create_task(bench.ask("m"))
        await bench.until_waiting("m", 1)
        bench.gateway.heed(True)
        assert (await waiting)[1]["error"]["message"] == "it is drained"
        assert (await bench.ask("m"))[0] == 503


async def test_who_waits_since_news_was_old_goes_on_waiting_where_the_refusal_was_lifted() -> None:
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("m")
        bench.gateway.turn_away(Refuse(ModelId("m"), "it is drained", 7))
        bench.gateway.heed(False)
        waiting = asyncio.create_task(bench.ask("m"))
        await bench.until_waiting("m", 1)
        bench.gateway.admit("m")
        bench.gateway.heed(True)
        bench.route("m", stub.url)
        assert (await waiting)[0] == 200


async def test_a_gates_refusal_is_tried_again_and_an_engines_own_503_is_not() -> None:
    async def busy_once(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if len(stub.seen) == 1:
            return web.json_response({}, status=503, headers={"X-VNPU-Gate": "queue_full", "Retry-After": "0"})
        return web.json_response({"error": {"message": "mine"}}, status=503, headers={"Retry-After": "9"})

    async with serving(OpenAIStub("m", busy_once)) as stub, gateway() as bench:
        bench.route("m", stub.url)
        async with bench.post({"model": "m"}) as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "9"
            assert (await answer.json())["error"]["message"] == "mine"
    assert len(stub.seen) == 2


async def test_engines_that_take_turns_in_turning_it_away_do_not_keep_it_beyond_its_deadline() -> None:
    async def shut(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.6)  # longer than one that turned it away is left alone
        return web.json_response({}, status=503, headers={"X-VNPU-Gate": "shut", "Retry-After": "0"})

    async with serving(OpenAIStub("1", shut)) as one, serving(OpenAIStub("2", shut)) as two, gateway() as bench:
        bench.known.max_wait_s = 1.0
        bench.route("m", one.url, two.url)
        status, answer = await bench.ask("m")
        assert (status, answer["error"]["code"]) == (503, "model_wait_timeout")


async def test_an_engine_that_dies_with_the_request_in_its_hands_is_not_asked_again() -> None:
    async def die(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with serving(OpenAIStub("m", die)) as stub, gateway() as bench:
        bench.route("m", stub.url)
        async with bench.post({"model": "m"}) as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "1"
            assert (await answer.json())["error"]["code"] == "engine_lost"
    assert len(stub.seen) == 1


async def test_a_whole_answer_that_breaks_off_becomes_a_retryable_error() -> None:
    async def half(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"choices": [')
        assert request.transport is not None
        request.transport.close()
        return response

    async with serving(OpenAIStub("m", half)) as stub, gateway() as bench:
        bench.route("m", stub.url)
        status, answer = await bench.ask("m")
        assert (status, answer["error"]["code"]) == (503, "engine_lost")


async def test_a_redirect_is_not_followed() -> None:
    async def elsewhere(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect("http://169.254.169.254/")

    async with serving(OpenAIStub("m", elsewhere)) as stub, gateway() as bench:
        bench.route("m", stub.url)
        status, answer = await bench.ask("m")
        assert (status, answer["error"]["code"]) == (502, "engine_redirects")


async def test_a_stream_goes_through_chunk_by_chunk() -> None:
    go = asyncio.Event()

    async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin_stream(request)
        await response.write(event({"n": 1}))
        await go.wait()
        await response.write(event({"n": 2}) + b"data: [DONE]\n\n")
        return response

    async with serving(OpenAIStub("m", slow)) as stub, gateway() as bench:
        bench.route("m", stub.url)
        async with bench.post({"model": "m", "stream": True}) as answer:
            assert answer.headers["X-Accel-Buffering"] == "no"
            first = await answer.content.readany()
            assert first == event({"n": 1})
            go.set()
            rest = await answer.content.read()
    assert rest == event({"n": 2}) + b"data: [DONE]\n\n"


async def test_half_an_event_before_the_end_spoils_no_error_event() -> None:
    async def half(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin_stream(request)
        await response.write(event({"n": 1}) + b'data: {"n": 2')
        return response

    async with serving(OpenAIStub("m", half)) as stub, gateway() as bench:
        bench.route("m", stub.url)
        lines, _ = await read_stream(bench, "m")
    parts = [part.strip() for part in b"".join(lines).split(b"\n\n")]
    events = [json.loads(part.removeprefix(b"data: ")) for part in parts if part]
    assert [events[0], events[1]["error"]["code"]] == [{"n": 1}, "engine_lost"]


@pytest.mark.parametrize("chunks", [[], [event({"n": 1})], [event({"n": 1}), b'data: {"n": 2']])
async def test_a_stream_that_breaks_off_ends_in_an_error_event_and_never_in_success(chunks: list[bytes]) -> None:
    async def broken(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await stream(request, chunks, done=False)

    async with serving(OpenAIStub("m", broken)) as stub, gateway() as bench:
        bench.route("m", stub.url)
        lines, error = await read_stream(bench, "m")
    events = [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: ")]
    assert events[-1]["error"]["code"] == "engine_lost"
    assert all("error" in each or each["n"] == 1 for each in events)
    assert error is not None


async def test_a_stream_that_ends_without_done_is_not_passed_for_complete() -> None:
    async def silent(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin_stream(request)
        await response.write(event({"n": 1}))
        return response

    async with serving(OpenAIStub("m", silent)) as stub, gateway() as bench:
        bench.route("m", stub.url)
        lines, error = await read_stream(bench, "m")
    assert b"engine_lost" in b"".join(lines)
    assert error is not None


async def test_a_client_that_leaves_its_stream_ends_the_engines_work() -> None:
    async def endless(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin_stream(request)
        while True:
            await response.write(event({"n": 1}))
            await asyncio.sleep(0.01)

    async with serving(OpenAIStub("m", endless)) as stub, gateway() as bench:
        bench.route("m", stub.url)
        async with (
            ClientSession() as session,
            session.post(bench.gateway.url + "/v1/completions", json={"model": "m", "stream": True}) as answer,
        ):
            await answer.content.readany()
            answer.close()
        await stub.until(lambda: stub.cancelled == 1)


async def test_a_client_that_never_reads_does_not_hold_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply, "STALLED_S", 0.2)
    block = b"data: " + b"x" * 65_536 + b"\n\n"

    async def endless(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin_stream(request)
        while True:
            await response.write(block)

    async with serving(OpenAIStub("m", endless)) as stub, gateway() as bench:
        bench.route("m", stub.url)
        async with bench.post({"model": "m", "stream": True}):
            await stub.until(lambda: stub.cancelled == 1)


async def test_a_slow_reader_slows_the_engine_instead_of_filling_the_gateway() -> None:
    written = 0
    block = b"data: " + b"x" * 65_536 + b"\n\n"

    async def fast(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal written
        response = await begin_stream(request)
        for _ in range(2000):
            await response.write(block)
            written += 1
        await response.write(b"data: [DONE]\n\n")
        return response

    async with serving(OpenAIStub("m", fast)) as stub, gateway() as bench:
        bench.route("m", stub.url)
        async with bench.post({"model": "m", "stream": True}) as answer:
            await answer.content.readany()
            last = -1
            while written != last:  # stalled: nobody reads
                last = written
                await asyncio.sleep(0.2)
            assert written < 1000
            rest = await answer.content.read()
    assert rest.endswith(b"data: [DONE]\n\n")
    assert written == 2000


async def test_a_model_whose_engines_vanished_is_waited_for() -> None:
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("m", stub.url)
        bench.route("m", gone=True)
        asked = asyncio.create_task(bench.ask("m"))
        await bench.until_waiting("m", 1)
        bench.route("m", stub.url)
        assert (await asked)[0] == 200


async def test_an_engine_on_a_host_that_is_not_allowed_is_never_connected_to() -> None:
    async with gateway() as bench:
        bench.known.max_wait_s = 0.2
        bench.route("m", "http://169.254.169.254:80")
        status, answer = await bench.ask("m")
        assert status == 503
        assert "not allowed" in answer["error"]["message"] or "never an engine's" in answer["error"]["message"]


async def test_models_health_running_and_metrics() -> None:
    async with serving(OpenAIStub()) as stub, gateway(models=("asleep",)) as bench:
        bench.route("m", stub.url)
        await bench.ask("m")
        _, text = await bench.get("/v1/models")
        assert [card["id"] for card in json.loads(text)["data"]] == ["asleep", "m"]
        _, text = await bench.get("/running")
        assert [each["model"] for each in json.loads(text)["running"]] == ["m"]
        bench.known.healthy_now = False
        _, text = await bench.get("/health")
        assert json.loads(text) == {"status": "degraded"}
        _, text = await bench.get("/metrics")
        assert b'vnpu_requests_total{model="m",status="200"} 1.0' in text


async def test_a_page_of_another_site_is_refused_on_loopback() -> None:
    async with gateway() as bench:
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            answer, _ = await bench.get("/v1/models", headers)
            assert answer.status == 403


async def test_an_unknown_path_is_an_error_in_openais_shape() -> None:
    async with gateway() as bench:
        answer, text = await bench.get("/nowhere")
        assert answer.status == 404
        assert "error" in json.loads(text)


async def test_the_end_answers_what_waits_and_lets_streams_finish() -> None:
    go = asyncio.Event()

    async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin_stream(request)
        await response.write(event({"n": 1}))
        await go.wait()
        await response.write(b"data: [DONE]\n\n")
        return response

    async with serving(OpenAIStub("m", slow)) as stub, gateway() as bench:
        bench.route("m", stub.url)
        bench.route("asleep")
        held = asyncio.create_task(bench.ask("asleep"))
        await bench.until_waiting("asleep", 1)
        async with bench.post({"model": "m", "stream": True}) as answer:
            await answer.content.readany()
            end = asyncio.create_task(bench.gateway.drain())
            status, refused = await held
            assert (status, refused["error"]["code"]) == (503, "gateway_closing")
            go.set()
            assert (await answer.content.read()).endswith(b"data: [DONE]\n\n")
        await end
