"""The OpenAPI document is true: every route is in it, and every answer is of the type that it promises."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from coordinator.admin.openapi import document
from coordinator.admin.operations import OPERATIONS, Operation
from coordinator.core.commands import Endpoint
from coordinator.core.model import (
    Bytes,
    Candidate,
    Decision,
    DeviceId,
    EngineId,
    Holder,
    Order,
    Phase,
    Seat,
    Step,
    Token,
)
from coordinator.core.settings import Settings
from coordinator.core.view import DeviceState, EngineState, ModelState, OwnerState, PendingState, State
from coordinator.history import Sample, Switch
from coordinator.reload import Report, Waits
from coordinator.store import keys
from coordinator.store.base import Put
from coordinator.store.codec import encode
from coordinator.store.facts import Quarantined
from coordinator.store.memory import MemoryEtcd
from tests.helpers.admin import Core, admin

ROOT = Path(__file__).parents[2]
A = Holder("a", "1")
D = DeviceId("local/0")


def full() -> State:
    """A state in which nothing is left out."""
    seat = Seat(holder=A, lease=1, order=Order.RESTORE, bytes=5, limit_s=60)
    token = Token(holder=A, lease=1, order=Order.RESTORE, bytes=5, cause="x")
    owner = OwnerState(A, Bytes(weights=5), alive=True, lost_s=1.0)
    device = DeviceState(D, True, 100, 5, "busy", None, seat, 7, 6, (owner,), token)
    engine = EngineState(
        "a", "a", "http://x", (D,), Phase.RESIDENT, "serving", "", Bytes(5), Bytes(5), 1, 2, 0.5, error="e"
    )
    model = ModelState("a", Settings(), ("a",), (Endpoint(EngineId("a"), "http://x"),), 3, 0.5, "no")
    return State(True, "e", 3, (device,), (engine,), (model,), (PendingState(1, Order.RESTORE, "a", (D,)),), 4)


def busy_core() -> Core:
    core = Core()
    core.state = full()
    core.quarantined = (Quarantined("/k", 1, 2, "why", None),)
    core.report = Report(("defaults.pin",), (Waits("etcd", "restart"),))
    core.history.samples.append(Sample(1.0, D, 100, Bytes(5), {"a": 5}))
    core.history.answered("a", 0.5)
    core.history.switches.append(
        Switch(1.0, "a", "a", (D,), Order.RESTORE, 0.5, "warm", 5, 0.1, (Step("copy", 0.4),), "")
    )
    return core


@pytest.mark.parametrize(
    "one", [one for one in OPERATIONS if one.answer is not None], ids=lambda one: f"{one.method} {one.path}"
)
async def test_an_answer_is_exactly_what_is_promised(one: Operation) -> None:
    store = MemoryEtcd().client(timeout=0.05)
    for n, shadow in enumerate(("lru: the same", "lru: b")):
        decision = Decision(
            n=n, at=1.7e9, order=Order.OFFLOAD, engine="a", devices=(D,), cause="room", shadow=shadow, wanted="b",
            candidates=(Candidate("a", 0.5, "idle"),),
        )  # fmt: skip
        await store.txn([], [Put(keys.decision(n), encode(decision))])
    async with admin(core=busy_core(), store=store) as bench:
        body = {"json": {"pin": True}} if one.body is not None else {}
        path = one.path.replace("{model}", "a")
        async with bench.session.request(one.method, bench.url + path, **body) as answer:
            assert answer.status == one.status
            raw = await answer.read()
    assert one.answer is not None
    decoded = msgspec.json.decode(raw, type=one.answer)
    assert json.loads(msgspec.json.encode(decoded)) == json.loads(raw)  # nothing beside it either


async def test_it_is_served_and_names_every_route() -> None:
    async with admin() as bench:
        status, served = await bench.ask("GET", "/openapi.json")
        assert (status, served["openapi"]) == (200, "3.1.0")
        assert served == json.loads(msgspec.json.encode(document()))
    promised = {(one.method, one.path) for one in OPERATIONS}
    assert promised == {(method.upper(), path) for path, item in served["paths"].items() for method in item}


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        yield from ([node["$ref"]] if "$ref" in node else [])
        for value in node.values():
            yield from references(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from references(value)


def test_every_reference_leads_somewhere_and_every_operation_has_its_own_id() -> None:
    told = msgspec.to_builtins(document())
    found = {f"#/components/schemas/{name}" for name in told["components"]["schemas"]}
    assert set(references(told)) <= found
    ids = [operation["operationId"] for item in told["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids))


def test_the_page_names_every_route() -> None:
    page = (ROOT / "docs/http-api.md").read_text()
    written = set(re.findall(r"`(GET|POST|PATCH) (/v1/[^`?]*)", page))
    for one in OPERATIONS:
        assert (one.method, one.path) in written, f"{one.method} {one.path} is not in docs/http-api.md"


async def test_errors_have_the_shape_that_is_promised() -> None:
    from coordinator.admin.answers import Refusal

    async with admin("the key") as bench, bench.session.get(bench.url + "/v1/state") as answer:
        assert msgspec.json.decode(await answer.read(), type=Refusal).error.code == "unauthorized"


async def test_decisions_of_one_model_and_why() -> None:
    store = MemoryEtcd().client(timeout=0.05)
    for n, engine in enumerate(("a", "b", "a")):
        decision = Decision(
            n=n, at=1.7e9, order=Order.RESTORE, engine=engine, devices=(D,), cause="asked", wanted=engine
        )
        await store.txn([], [Put(keys.decision(n), encode(decision))])
    async with admin(core=busy_core(), store=store) as bench:
        _, answer = await bench.ask("GET", "/v1/decisions?model=a")
        assert [each["n"] for each in answer["decisions"]] == [2, 0]
        _, answer = await bench.ask("GET", "/v1/models/a/why?limit=1")
        assert [each["what"] for each in answer["told"]] == ["a came back on local/0"]


async def test_the_token_says_whether_its_operation_is_over() -> None:
    async with admin(core=busy_core()) as bench:
        _, answer = await bench.ask("GET", "/v1/tokens")
        [token] = answer["tokens"]
        assert (token["fence"], token["closed"], token["over"], token["stands"]) == (7, 6, False, True)


async def test_the_events_are_chosen_by_kind() -> None:
    async with admin(core=busy_core()) as bench:
        async with bench.session.get(bench.url + "/v1/events?kinds=sample") as answer:
            assert (await answer.content.readuntil(b"\n\n")).startswith(b"event: state\n")
            bench.feed.publish("switch", bench.core.history.switches[0])
            bench.feed.publish("sample", bench.core.history.samples[0])
            assert (await answer.content.readuntil(b"\n\n")).startswith(b"event: sample\n")
        async with bench.session.get(bench.url + "/v1/events?kinds=state") as answer:
            await answer.content.readuntil(b"\n\n")
            bench.core.state = msgspec.structs.replace(full(), revision=99)
            bench.feed.touch()
            again = await answer.content.readuntil(b"\n\n")
            assert again.startswith(b"event: state\n")
            assert b'"revision":99' in again
        assert (await bench.ask("GET", "/v1/events?kinds=gossip"))[0] == 400
