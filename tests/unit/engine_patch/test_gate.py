"""The gate in process: held, let in, refused, abandoned; bodies unharmed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.core.model import Load
from engine_patch.door import Door
from engine_patch.gate import Gate, needs_model
from tests.helpers.asgi import Exchange, echo


class Keeper:
    def __init__(self, max_queue: int = 512, max_wait: float = 30.0) -> None:
        self.max_wait = max_wait
        self.loads: list[Load] = []
        self.answers: list[float] = []
        self._door = Door(max_queue, self._changed)
        self._wake = asyncio.Event()
        self.attached: Any = None
        self.stopped = False

    def _changed(self, load: Load) -> None:
        self.loads.append(load)
        self._wake.set()

    def door(self) -> Door:
        return self._door

    def attach(self, state: Any) -> None:
        self.attached = state

    def answered(self, seconds: float) -> None:
        self.answers.append(seconds)

    def stop(self) -> None:
        self.stopped = True

    async def until(self, reached: Callable[[Load], bool]) -> None:
        async with asyncio.timeout(30):
            while not self.loads or not reached(self.loads[-1]):
                self._wake.clear()
                await self._wake.wait()


def waiting(n: int) -> Callable[[Load], bool]:
    return lambda load: load.waiting == n


async def test_a_held_request_is_let_in_with_its_whole_body():
    keeper = Keeper()
    call = Exchange(Gate(echo, keeper), parts=(b'{"a":', b" 1}"))
    await keeper.until(waiting(1))
    keeper.door().open()
    assert (await call.end()).json == {"a": 1}
    assert keeper.loads[-1] == Load()
    [seconds] = keeper.answers  # once, however many parts the answer has; waiting counts
    assert seconds > 0


async def test_an_open_gate_is_transparent_and_counts():
    keeper = Keeper()
    keeper.door().open()
    assert (await Exchange(Gate(echo, keeper), parts=(b"x",)).end()).body == b"x"
    assert keeper.loads == [Load(running=1), Load()]


@pytest.mark.parametrize(("status", "told"), [(200, 1), (400, 0), (503, 0)])
async def test_a_good_answer_in_parts_is_told_once_and_a_bad_one_never(status: int, told: int):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        for part in (b"", b"one", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": part != b"two"})

    keeper = Keeper()
    keeper.door().open()
    assert (await Exchange(Gate(app, keeper)).end()).body == b"onetwo"
    assert len(keeper.answers) == told


async def test_a_full_queue_answers_at_once_in_openai_shape():
    keeper = Keeper(max_queue=1)
    gate = Gate(echo, keeper)
    first = Exchange(gate)
    await keeper.until(waiting(1))
    second = await Exchange(gate).end()
    assert second.status == 503
    assert int(second.headers["retry-after"]) >= 1
    assert second.json["error"]["code"] == "queue_full"
    assert keeper.answers == []  # a refusal is no answer
    assert set(second.json["error"]) == {"message", "type", "param", "code"}
    keeper.door().open()
    assert (await first.end()).status == 200


@pytest.mark.parametrize("header", [{"X-VNPU-Deadline": "0"}, {"x-vnpu-deadline": "-3"}])
async def test_the_gateways_deadline_is_obeyed(header: dict[str, str]):
    call = await Exchange(Gate(echo, Keeper()), headers=header).end()
    assert (call.status, call.json["error"]["code"]) == (503, "wait_timeout")


async def test_the_own_bound_holds_against_a_longer_or_senseless_deadline():
    gate = Gate(echo, Keeper(max_wait=0.0))
    for value in ("900", "nan", "inf", "soon"):
        assert (await Exchange(gate, headers={"x-vnpu-deadline": value}).end()).status == 503


async def test_a_disconnect_frees_the_place():
    keeper = Keeper(max_queue=1)
    gate = Gate(echo, keeper)
    call = Exchange(gate)
    await keeper.until(waiting(1))
    call.hang_up()
    await call.end()
    assert call.sent == []
    assert keeper.loads[-1] == Load()
    other = Exchange(gate)
    await keeper.until(waiting(1))
    keeper.door().open()
    assert (await other.end()).status == 200


async def test_a_cancelled_request_frees_the_place():
    keeper = Keeper()
    call = Exchange(Gate(echo, keeper))
    await keeper.until(waiting(1))
    call.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.end()
    assert keeper.loads[-1] == Load()


async def test_a_failed_engine_answers_all_who_wait_and_all_who_come():
    keeper = Keeper()
    gate = Gate(echo, keeper)
    held = Exchange(gate)
    await keeper.until(waiting(1))
    keeper.door().fail("digest of chunk 3 differs")
    for call in (held, Exchange(gate)):
        assert ((await call.end()).status, call.json["error"]["code"]) == (503, "engine_failed")
    keeper.door().open()
    assert not keeper.door().is_open


async def test_frozen_requests_count_as_waiting():
    keeper = Keeper()
    keeper.door().open()
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        inside.set()
        await go_on.wait()
        await echo(scope, receive, send)

    call = Exchange(Gate(slow, keeper))
    await inside.wait()
    keeper.door().shut()
    assert keeper.loads[-1] == Load(waiting=1)
    keeper.door().open()
    assert keeper.loads[-1] == Load(running=1)
    go_on.set()
    assert (await call.end()).status == 200


async def test_two_hundred_wait_and_all_are_answered_in_order():
    keeper = Keeper()
    served: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        served.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    calls = [Exchange(Gate(app, keeper), parts=(str(i).encode(),)) for i in range(200)]
    await keeper.until(waiting(200))
    keeper.door().open()
    assert [(await call.end()).status for call in calls] == [200] * 200
    assert served == [str(i).encode() for i in range(200)]


async def test_other_paths_are_not_held_and_memory_endpoints_are_ours():
    gate = Gate(echo, Keeper())
    assert (await Exchange(gate, "/v1/models", method="GET").end()).status == 200
    assert (await Exchange(gate, "/tokenize").end()).status == 200
    refused = await Exchange(gate, "/wake_up").end()
    assert (refused.status, refused.json["error"]["code"]) == (409, "managed_by_vnpu")


@pytest.mark.parametrize(
    ("method", "path", "held"),
    [
        ("POST", "/v1/chat/completions", True),
        ("POST", "/v1/embeddings", True),
        ("POST", "/score", True),
        ("GET", "/v1/models", False),
        ("POST", "/v1/responses/r1/cancel", False),
        ("POST", "/v1/messages/count_tokens", False),
        ("POST", "/detokenize", False),
    ],
)
def test_what_is_held(method: str, path: str, held: bool):
    assert needs_model(method, path) is held


async def test_lifespan_hands_the_engine_client_over_and_stops_the_agent():
    keeper = Keeper()
    state = SimpleNamespace(engine_client="client")
    sent: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert keeper.attached is None
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.shutdown"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await Gate(app, keeper)({"type": "lifespan", "app": SimpleNamespace(state=state)}, receive, send)
    assert keeper.attached is state
    assert keeper.stopped
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_without_endpoints_the_gate_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("VNPU_ETCD_ENDPOINTS", raising=False)
    monkeypatch.delenv("ETCD_ENDPOINTS", raising=False)
    gate = Gate(echo)
    assert (await Exchange(gate, parts=(b"x",)).end()).body == b"x"
    assert (await Exchange(gate, "/wake_up", parts=(b"x",)).end()).status == 200
