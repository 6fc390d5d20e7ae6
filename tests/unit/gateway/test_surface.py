"""All that engines answer goes through the gateway, and nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import re
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, FormData, web

from coordinator.gateway import surface
from coordinator.gateway.problem import Problem, engine_lost
from coordinator.gateway.sse import LineRelay, error_event
from tests.helpers.gateway import Bench, gateway
from tests.helpers.openai_stub import OpenAIStub, Seen, begin_stream, serving

AUDIO = "/v1/audio/transcriptions"


@pytest.mark.parametrize("path", surface.JSON_PATHS)
async def test_every_route_is_passed_with_its_fields_and_without_what_steers_transfers(path: str) -> None:
    steering = {"kv_transfer_params": {"x": 1}, "ec_transfer_params": {"x": 1}}
    asked = {"model": "alias", "input": [1, {"a": None}], **steering, "vllm_xargs": {**steering, "kept": 2}}
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("org/m", stub.url, aliases=("alias",))
        async with bench.post(asked, path) as answer:
            assert answer.status == 200
    assert (stub.seen[0].path, stub.seen[0].body) == (
        path,
        {"model": "org/m", "input": [1, {"a": None}], "vllm_xargs": {"kept": 2}},
    )


def test_the_list_is_what_vllm_has() -> None:
    """Each path that we pass is a route of the vLLM that is installed."""
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    sources = Path(found.origin).parent.joinpath("entrypoints").rglob("*.py")
    routes = {path for source in sources for path in re.findall(r'"(/[a-z0-9_/{}-]+)"', source.read_text())}
    assert set(surface.PATHS) - routes == set()


@pytest.mark.parametrize(
    "path",
    [
        "/sleep",
        "/wake_up",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/v1/load_lora_adapter",
        "/inference/v1/generate",
        "/invocations",
        "/v1/completions/",
        "//v1/completions",
        "/v1/models/../completions",
        "/v1/%63ompletions/x",
        "/v1/completions%2f",
        "/v1/completions%00",
        "/v1/completions;x=1",
    ],
)
async def test_no_other_path_reaches_an_engine(path: str) -> None:
    """Sent as it stands: clients would tidy it up."""
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("m", stub.url)
        body = b'{"model": "m", "prompt": "x"}'
        assert await status_of(bench, path, body) in (404, 405)
    assert stub.seen == []


async def status_of(bench: Bench, path: str, body: bytes) -> int:
    host, port = bench.gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    line = await reader.readline()
    writer.close()
    return int(line.split()[1])


async def test_a_query_does_not_reach_an_engine() -> None:
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("m", stub.url)
        async with bench.post({"model": "m"}, "/v1/embeddings?kv_transfer_params=x") as answer:
            assert answer.status == 200
    assert stub.seen[0].path == "/v1/embeddings"


async def test_raw_bytes_keep_the_header_that_explains_them() -> None:
    async def raw(request: web.Request, body: dict[str, Any]) -> web.Response:
        headers = {"metadata": '{"data": []}', "X-Secret": "1", "Content-Type": "application/octet-stream"}
        return web.Response(body=b"\x00\x01", headers=headers)

    async with serving(OpenAIStub("e", raw)) as stub, gateway() as bench:
        bench.route("m", stub.url)
        async with bench.post({"model": "m", "encoding_format": "bytes"}, "/v1/embeddings") as answer:
            assert (answer.headers["metadata"], await answer.read()) == ('{"data": []}', b"\x00\x01")
            assert "X-Secret" not in answer.headers


# ---- forms


def form(model: str = "small", **more: str) -> FormData:
    data = FormData()
    data.add_field("file", bytes(range(256)) * 9 + b"\r\n--", filename='a"b.wav', content_type="audio/wav")
    for name, value in {"model": model, **more}.items():
        data.add_field(name, value)
    return data


def fields(seen: Seen) -> dict[str, bytes]:
    """The form as Python's own parser of messages reads it."""
    head = f"Content-Type: {seen.headers['Content-Type']}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + seen.raw)
    assert isinstance(message, EmailMessage)
    found = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        assert isinstance(name, str)
        found[name] = part.get_payload(decode=True)
    return found  # type: ignore[return-value]


async def test_audio_goes_to_the_model_that_its_form_names() -> None:
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("whisper", stub.url, aliases=("small",))
        asked = form(language="fr", kv_transfer_params="{}", **{"vllm_xargs[kv_transfer_params]": "x"})
        async with bench.session.post(bench.gateway.url + AUDIO, data=asked) as answer:
            assert answer.status == 200
    got = fields(stub.seen[0])
    assert (got["model"], got["language"], sorted(got)) == (b"whisper", b"fr", ["file", "language", "model"])
    assert bytes(range(256)) * 9 + b"\r\n--" in stub.seen[0].raw
    assert b'filename="a' in stub.seen[0].raw


async def test_a_form_is_held_while_its_model_wakes() -> None:
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("small")
        asking = asyncio.create_task(bench.session.post(bench.gateway.url + AUDIO, data=form()).__aenter__())
        await bench.until_waiting("small", 1)
        bench.route("small", stub.url)
        assert (await asking).status == 200


def multipart(*parts: tuple[str, bytes]) -> bytes:
    return b"".join(b"--X\r\n" + head.encode() + b"\r\n\r\n" + body + b"\r\n" for head, body in parts) + b"--X--\r\n"


NAMED = 'Content-Disposition: form-data; name="{}"'
MODEL = (NAMED.format("model"), b"m")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"garbage", 400),
        (multipart((NAMED.format("file"), b"x")), 400),
        (multipart(MODEL, MODEL), 400),
        (multipart(MODEL, ("X-Y: z", b"x")), 400),
        (multipart(MODEL, (NAMED.format("a b"), b"x")), 400),
        (multipart(MODEL, (NAMED.format("file") + "\r\nContent-Encoding: gzip", b"x")), 400),
        (multipart(MODEL, (NAMED.format("file") + "\r\nContent-Transfer-Encoding: base64", b"eA==")), 400),
        (multipart(MODEL, (NAMED.format("file") + "\r\nContent-Type: multipart/mixed; boundary=Y", b"--Y--")), 400),
        (multipart(MODEL, *[(NAMED.format("x"), b"")] * 70), 400),
        (multipart(MODEL, (NAMED.format("file"), b"x" * 300_000)), 413),
        (multipart(MODEL, (NAMED.format("file"), b"x"))[:-9], 400),
        (multipart((NAMED.format("model"), b"nowhere")), 404),
    ],
)
async def test_a_form_that_is_none_is_refused(body: bytes, status: int) -> None:
    async with serving(OpenAIStub()) as stub, gateway(max_body=250_000) as bench:
        bench.route("m", stub.url)
        headers = {"Content-Type": "multipart/form-data; boundary=X"}
        async with bench.session.post(bench.gateway.url + AUDIO, data=body, headers=headers) as answer:
            assert answer.status == status
            assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}
    assert stub.seen == []


async def test_json_where_a_form_is_wanted_is_refused() -> None:
    async with gateway() as bench, bench.post({"model": "m"}, AUDIO) as answer:
        assert answer.status == 400


# ---- how streams end


@pytest.mark.parametrize(
    ("path", "last", "whole"),
    [
        ("/v1/responses", b'event: response.completed\ndata: {"response": "' + b"x" * 5000 + b'"}\n\n', True),
        ("/v1/responses", b"event: response.incomplete\ndata: {}\n\n", True),
        ("/v1/responses", b"event: response.output_text.delta\ndata: {}\n\n", False),
        ("/v1/responses", b"event: response.completed\ndata: {", False),
        ("/v1/responses", b"data: [DONE]\n\n", False),
        ("/v1/messages", b'event: message_stop\ndata: {"type": "message_stop"}\n\n', True),
        ("/v1/messages", b"event: message_delta\ndata: {}\n\n", False),
        ("/cohere/v2/chat", b"event: message-end\ndata: {}\n\ndata: [DONE]\n\n", True),
        ("/cohere/v2/chat", b"event: message_stop\ndata: {}\n\n", False),
        ("/v1/chat/completions", b"event: response.completed\ndata: {}\n\n", False),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_is_whole_where_its_last_event_says_so(path: str, last: bytes, whole: bool, size: int) -> None:
    sent = b'event: response.created\ndata: {"text": "event: message_stop"}\n\n' + last
    relay = LineRelay(surface.named_ends(path))
    passed = b"".join(relay.feed(sent[at : at + size]) for at in range(0, len(sent), size)) + relay.finish()
    assert (passed, relay.complete) == (sent, whole)


async def test_a_broken_response_ends_in_an_event_named_error() -> None:
    async def broken(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await begin_stream(request)
        await response.write(b"event: response.created\ndata: {}\n\n")
        await response.write_eof()
        return response

    got = b""
    async with serving(OpenAIStub("e", broken)) as stub, gateway() as bench:
        bench.route("m", stub.url)
        async with bench.post({"model": "m", "stream": True}, "/v1/responses") as answer:
            with contextlib.suppress(ClientError):
                async for chunk in answer.content.iter_any():
                    got += chunk
    name, data = got.split(b"\n\n")[-2].strip().split(b"\n")
    assert name == b"event: error"
    told = json.loads(data.removeprefix(b"data: "))
    assert (told["type"], told["code"], told["error"]["code"]) == ("error", "engine_lost", "engine_lost")


def test_an_error_event_is_readable_by_each_kind_of_client() -> None:
    problem: Problem = engine_lost("m")
    assert json.loads(error_event(problem).strip().removeprefix(b"data: ")) == json.loads(problem.body)
