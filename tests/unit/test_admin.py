"""The operators' API: who gets in, what is told, what is written. The store is in memory, the core is a recorder."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.test_utils import make_mocked_request

from coordinator.admin import policies
from coordinator.admin.access import Access
from coordinator.admin.app import Settings
from coordinator.admin.feed import Feed
from coordinator.admin.handlers import Handlers
from coordinator.admin.leader import Leader
from coordinator.admin.page import FILES
from coordinator.core.events import LeadershipLost
from coordinator.core.model import Coordinator, Decision, Order, Policy
from coordinator.core.view import State
from coordinator.errors import ConfigError
from coordinator.gateway.problem import Problem
from coordinator.hosts import Peers
from coordinator.store import keys
from coordinator.store.base import Put
from coordinator.store.codec import decode, encode
from coordinator.store.memory import Fault, MemoryEtcd, MemoryStore
from tests.helpers.admin import Core, admin

KEY = {"Authorization": "Bearer the key"}


def every_route() -> list[tuple[str, str]]:
    """(method, path) of all that the router knows."""
    store = MemoryEtcd().client()
    handlers = Handlers(Core(), store, Access("127.0.0.1", "k"), Feed(), Leader(store, "c", Peers()))
    routes = handlers.application().router.routes()
    return sorted(
        {(route.method, route.resource.canonical.replace("{model}", "a")) for route in routes if route.resource}
    )


def test_the_routes_are_those_that_are_promised() -> None:
    model = [("POST", f"/v1/models/a/{order}") for order in ("sleep", "wake", "pin", "unpin", "drain", "resume")]
    what = "state devices engines models decisions events tokens policy history models/a models/a/why"
    read = [("GET", f"/v1/{path}") for path in what.split()]
    promised = {
        *model,
        *read,
        ("PATCH", "/v1/models/a/policy"),
        ("POST", "/v1/config/reload"),
        ("GET", "/openapi.json"),
    }
    assert promised | {("GET", path) for path in FILES} == {route for route in every_route() if route[0] != "HEAD"}


@pytest.mark.parametrize(("method", "path"), [route for route in every_route() if route[1] not in FILES])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer the ke"},
        {"Authorization": "Bearer the key2"},
        {"Authorization": "Bearer "},
        {"Authorization": "the key"},
        {"Authorization": "Basic dGhlIGtleQ=="},
        {"x-api-key": "the key"},
        {"Cookie": "key=the key"},
    ],
    ids=str,
)
async def test_no_route_opens_without_the_key(method: str, path: str, headers: dict[str, str]) -> None:
    async with admin("the key") as bench:
        async with bench.session.request(method, bench.url + path, headers=headers) as answer:
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert bench.core.orders == []
        assert await bench.policy("a") is None


async def test_not_even_unknown_paths_are_told_without_the_key() -> None:
    async with admin("the key") as bench:
        assert (await bench.ask("GET", "/nowhere"))[0] == 401
        assert (await bench.ask("GET", "/nowhere", headers=KEY))[0] == 404
        assert (await bench.ask("DELETE", "/v1/state", headers=KEY))[0] == 405


async def test_the_key_opens() -> None:
    async with admin("the key") as bench:
        status, state = await bench.ask("GET", "/v1/state", headers=KEY)
        assert (status, state["coordinator"], state["epoch"]) == (200, "c1", "e")


async def test_two_authorization_headers_are_none() -> None:
    request = make_mocked_request(
        "GET", "/", headers=[("Host", "localhost"), ("Authorization", "Bearer k"), ("Authorization", "Bearer k")]
    )
    with pytest.raises(Problem) as caught:
        Access("127.0.0.1", "k").check(request)
    assert caught.value.status == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "coordinator", "::ffff:10.0.0.1"])
def test_without_a_key_only_loopback_is_listened_on(host: str) -> None:
    with pytest.raises(ConfigError, match="api_key"):
        Access(host, "")
    Access(host, "k")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_loopback_needs_no_key(host: str) -> None:
    Access(host, "")


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}]
)
async def test_pages_of_other_sites_are_refused_even_with_the_key(headers: dict[str, str]) -> None:
    async with admin("the key") as bench:
        assert (await bench.ask("POST", "/v1/models/a/sleep", headers={**KEY, **headers}))[0] == 403
    async with admin() as bench:
        assert (await bench.ask("POST", "/v1/models/a/sleep", headers=headers))[0] == 403


async def test_a_body_must_be_json() -> None:
    async with admin() as bench:
        status, _ = await bench.ask("PATCH", "/v1/models/a/policy", data=b'{"pin": true}')
        assert status == 415


@pytest.mark.parametrize(("name", "order"), [("sleep", Order.OFFLOAD), ("wake", Order.RESTORE)])
@pytest.mark.parametrize("path", ["a", "org/b", "org%2Fb"])
async def test_an_order_goes_into_the_leaders_inbox(name: str, order: Order, path: str) -> None:
    async with admin() as bench:
        status, answer = await bench.ask("POST", f"/v1/models/{path}/{name}")
        assert (status, answer["accepted_by"]) == (202, "c1")
        assert [(asked.model, asked.order) for asked in bench.core.orders] == [(path.replace("%2F", "/"), order)]


async def test_an_unknown_model_is_told_what_exists() -> None:
    async with admin() as bench:
        status, answer = await bench.ask("POST", "/v1/models/nowhere/sleep")
        assert status == 404
        assert "a, org/b" in answer["error"]["message"]


async def test_policies_are_written_one_over_the_other() -> None:
    async with admin() as bench:
        assert (await bench.ask("POST", "/v1/models/org/b/pin"))[0] == 200
        assert (await bench.ask("POST", "/v1/models/org/b/drain"))[0] == 200
        status, answer = await bench.ask("PATCH", "/v1/models/org/b/policy", json={"priority": 5, "keep_alive": 2.5})
        assert (status, answer["policy"]["priority"]) == (200, 5)
        assert await bench.policy("org/b") == Policy(pin=True, drained=True, priority=5, keep_alive=2.5)
        assert (await bench.ask("POST", "/v1/models/org/b/unpin"))[0] == 200
        assert (await bench.ask("PATCH", "/v1/models/org/b/policy", json={"pin": None, "drained": False}))[0] == 200
        assert await bench.policy("org/b") == Policy(priority=5, keep_alive=2.5)


@pytest.mark.parametrize(
    "body", [{"pim": True}, {"pin": 3}, {"priority": 5000}, {"keep_alive": -1}, {"drained": None}, [], "x"]
)
async def test_a_policy_that_makes_no_sense_is_refused(body: object) -> None:
    async with admin() as bench:
        status, answer = await bench.ask("PATCH", "/v1/models/a/policy", json=body)
        assert (status, answer["error"]["code"]) == (400, "invalid_request")
        assert await bench.policy("a") is None


async def test_a_policy_that_does_not_decode_is_replaced() -> None:
    async with admin() as bench:
        await bench.store.txn([], [Put(keys.policy("a"), b"nonsense")])
        assert (await bench.ask("POST", "/v1/models/a/pin"))[0] == 200
        assert await bench.policy("a") == Policy(pin=True)


async def test_two_operators_lose_none_of_their_changes() -> None:
    etcd = MemoryEtcd()
    first, second = etcd.client(), etcd.client()
    await asyncio.gather(
        policies.update(first, "a", policies.Patch(pin=True).apply),
        policies.update(second, "a", policies.Patch(priority=7).apply),
    )
    found = await first.get(keys.policy("a"))
    assert found is not None
    assert decode(Policy, found.value) == Policy(pin=True, priority=7)


async def test_a_policy_whose_reply_was_lost_is_read_back() -> None:
    store = MemoryEtcd().client(timeout=0.01)
    faults = [Fault(lose_reply=True)]
    store.faults = lambda verb: faults.pop() if verb == "txn" and faults else Fault()
    assert await policies.update(store, "a", policies.Patch(pin=True).apply) == Policy(pin=True)


async def test_etcd_away_is_a_retryable_error() -> None:
    store = MemoryEtcd().client(timeout=0.01)
    async with admin(store=store) as bench:
        store.partition()
        async with bench.session.post(bench.url + "/v1/models/a/pin") as answer:
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) >= 1


async def test_decisions_come_newest_first_and_what_does_not_decode_is_left_out() -> None:
    async with admin() as bench:
        for n in range(5):
            decision = Decision(n=n, at=1.7e9, order=Order.RESTORE, engine="a", devices=("local/0",), cause="x")
            await bench.store.txn([], [Put(keys.decision(n), encode(decision))])
        await bench.store.txn([], [Put(keys.decision(9), b"nonsense")])
        _, answer = await bench.ask("GET", "/v1/decisions?limit=3")
        assert [decision["n"] for decision in answer["decisions"]] == [4, 3, 2]
        assert (await bench.ask("GET", "/v1/decisions?limit=x"))[0] == 400


async def test_what_happens_is_streamed_and_a_slow_reader_is_let_go() -> None:
    async with admin() as bench, bench.session.get(bench.url + "/v1/events") as answer:
        assert answer.content_type == "text/event-stream"
        assert await answer.content.readline() == b"event: state\n"
        await answer.content.readuntil(b"\n\n")
        bench.feed.publish("event", LeadershipLost())
        assert await answer.content.readuntil(b"\n\n") == b'event: event\ndata: {"type":"LeadershipLost"}\n\n'
        for _ in range(20):
            bench.feed.publish("event", LeadershipLost())
        assert (await answer.content.read()).endswith(b"event: lagged\ndata: {}\n\n")
        assert bench.feed.subscribers == 0


async def test_a_reader_that_leaves_is_forgotten() -> None:
    async with admin() as bench:
        async with bench.session.get(bench.url + "/v1/events") as answer:
            await answer.content.readline()
            assert bench.feed.subscribers == 1
        while bench.feed.subscribers:
            bench.feed.publish("event", LeadershipLost())
            await asyncio.sleep(0)


async def register(store: MemoryStore, identifier: str, url: str, *, leading: bool) -> None:
    value = Coordinator(id=identifier, admin_url=url, gateway_url="http://127.0.0.1:1", leading=leading)
    await store.txn([], [Put(keys.coordinator(identifier), encode(value))])


async def test_a_standby_passes_an_order_on_to_the_leader_once() -> None:
    etcd = MemoryEtcd()
    store = etcd.client()
    standby = Core("c2", leading=False)
    async with admin("the key") as leader, admin("the key", core=standby, store=store) as bench:
        await register(store, "c1", leader.url, leading=True)
        await register(store, "c2", bench.url, leading=False)
        status, answer = await bench.ask("POST", "/v1/models/org%2Fb/wake", headers=KEY)
        assert (status, answer["accepted_by"]) == (202, "c1")
        assert [asked.model for asked in leader.core.orders] == ["org/b"]
        leader.core.leading = False
        status, answer = await bench.ask("POST", "/v1/models/a/wake", headers=KEY)
        assert (status, answer["error"]["code"]) == (503, "no_leader")
        assert standby.orders == []


@pytest.mark.parametrize("url", ["http://169.254.169.254:80", "http://evil.example:80", "http://127.0.0.1:9"])
async def test_an_order_and_its_key_go_to_no_host_that_is_not_allowed_or_there(url: str) -> None:
    store = MemoryEtcd().client()
    async with admin("the key", core=Core("c2", leading=False), store=store) as bench:
        await register(store, "evil", url, leading=True)
        status, answer = await bench.ask("POST", "/v1/models/a/wake", headers=KEY)
        assert (status, answer["error"]["code"]) == (503, "no_leader")


async def test_without_a_leader_an_order_can_be_tried_again() -> None:
    async with admin(core=Core("c2", leading=False)) as bench:
        status, answer = await bench.ask("POST", "/v1/models/a/wake")
        assert (status, answer["error"]["code"]) == (503, "no_leader")


def test_no_secret_shows_in_a_repr() -> None:
    assert "the key" not in repr(Settings(api_key="the key"))


async def test_a_defect_in_a_handler_does_not_end_the_api() -> None:
    class Broken(Core):
        def view(self) -> State:
            raise ZeroDivisionError

    async with admin(core=Broken()) as bench:
        async with bench.session.get(bench.url + "/v1/state") as answer:
            assert answer.status == 500
        assert (await bench.ask("POST", "/v1/models/a/pin"))[0] == 200
