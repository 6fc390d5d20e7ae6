"""`keep_alive` of a request: read here, told to the scheduler when the request has ended, never passed on."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import FormData

from coordinator.core.model import FOREVER
from coordinator.gateway import keep
from coordinator.gateway.problem import Problem
from tests.helpers.gateway import Bench, gateway
from tests.helpers.openai_stub import OpenAIStub, serving


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (None, None),
        (0, 0.0),
        (3600, 3600.0),
        (0.5, 0.5),
        (-1, FOREVER),
        (-0.5, FOREVER),
        (1e300, FOREVER),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("300", 300.0),
        ("0", 0.0),
        ("-1", FOREVER),
        ("-5m", FOREVER),
        (" 1s ", 1.0),
    ],
)
def test_it_is_read_as_ollama_reads_it(given: object, seconds: float | None) -> None:
    assert keep.read(json.dumps(given).encode()) == seconds


@pytest.mark.parametrize(
    "given", [b"true", b"[]", b"{}", b'""', b'"soon"', b'"5"m', b'"--5m"', b'"1e9"', b"1e400", b"NaN", b'"\xff"',
              b'"' + b"1m" * 40 + b'"'],
)  # fmt: skip
def test_what_is_no_duration_is_refused(given: bytes) -> None:
    with pytest.raises(Problem) as refused:
        keep.read(given)
    assert (refused.value.status, refused.value.param) == (400, "keep_alive")


async def test_it_is_told_once_the_request_has_ended_and_is_not_passed_on() -> None:
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("m", stub.url, aliases=("alias",))
        assert (await bench.ask("m"))[0] == 200
        assert bench.kept == []
        assert (await bench.ask("alias", keep_alive="10m"))[0] == 200
        assert (await bench.ask("m", keep_alive="600s"))[0] == 200
        assert (await bench.ask("m", keep_alive=None))[0] == 200
        assert bench.kept == [("m", 600.0)]
        assert (await bench.ask("m", keep_alive=0))[0] == 200
        assert bench.kept[1:] == [("m", 0.0)]
    assert [seen.body for seen in stub.seen] == [{"model": "m", "prompt": "hello"}] * 5


async def test_it_is_over_when_the_model_leaves() -> None:
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("m", stub.url)
        await bench.ask("m", keep_alive=-1)
        bench.route("m")
        bench.route("m", stub.url)
        bench.route("m")
        assert bench.kept == [("m", FOREVER), ("m", None)]
        bench.route("m", stub.url)
        await bench.ask("m", keep_alive=-1)
        assert bench.kept[2:] == [("m", FOREVER)]


async def test_a_request_that_waited_in_vain_keeps_nobody() -> None:
    async with gateway() as bench:
        bench.route("m")
        bench.known.max_wait_s = 0.05
        assert (await bench.ask("m", keep_alive="1h"))[0] == 503
        assert bench.kept == []


async def test_a_client_that_leaves_amid_its_answer_has_said_it() -> None:
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        stub.behave = never
        bench.route("m", stub.url)
        asking = asyncio.create_task(bench.ask("m", keep_alive=0))
        await stub.until(lambda: len(stub.seen) == 1)
        asking.cancel()
        await bench.until(lambda: bench.kept == [("m", 0.0)])


async def never(request: object, body: object) -> object:
    return await asyncio.Event().wait()


async def test_both_groups_of_a_model_with_roles_are_kept() -> None:
    async with serving(OpenAIStub()) as stub, gateway(models=("m",), prefill={"m": "m@prefill"}) as bench:
        bench.route("m", stub.url)
        bench.route("m@prefill", stub.url)
        await bench.ask("m", keep_alive=7)
    assert bench.kept[:2] == [("m", 7.0), ("m@prefill", 7.0)]


async def test_a_form_says_it_in_a_field() -> None:
    async with serving(OpenAIStub()) as stub, gateway() as bench:
        bench.route("whisper", stub.url)
        assert await transcribe(bench, "10m") == 200
        assert await transcribe(bench, "soon") == 400
        assert bench.kept == [("whisper", 600.0)]
    assert b"keep_alive" not in stub.seen[0].raw


async def transcribe(bench: Bench, keep_alive: str) -> int:
    form = FormData({"model": "whisper", "keep_alive": keep_alive})
    form.add_field("file", b"RIFF", filename="a.wav")
    async with bench.session.post(bench.gateway.url + "/v1/audio/transcriptions", data=form) as answer:
        return answer.status
