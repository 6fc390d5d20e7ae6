"""Whole coordinators on a real etcd, with engines and a daemon that speak the protocol without moving memory."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from aiohttp import ClientSession

from coordinator.__main__ import main
from coordinator.admin.app import Settings as AdminSettings
from coordinator.core.model import Coordinator as CoordinatorKey
from coordinator.core.model import Load, Order, Phase
from coordinator.core.settings import Settings as ModelSettings
from coordinator.embedded import find_binary
from coordinator.store import keys
from coordinator.store.base import Delete, KeyValue, Listing, Put, Store
from coordinator.store.codec import decode
from coordinator.store.election import observe
from coordinator.store.floor import VARIABLE
from coordinator.store.follow import follow
from tests.helpers.coordinator import Coordinator, config_file, coordinator, coordinator_process
from tests.helpers.daemon import DaemonProcess
from tests.helpers.etcd import RealEtcd
from tests.helpers.light_engine import LightEngine
from tests.helpers.stub_engine import node


@pytest.fixture
async def store(etcd: RealEtcd) -> AsyncIterator[Store]:
    client = etcd.client()
    await client.txn([], [Delete(keys.ROOT, prefix=True)])
    yield client
    await client.close()


async def until(store: Store, prefix: str, told: Callable[[dict[str, KeyValue]], bool]) -> dict[str, KeyValue]:
    """What stands under `prefix` once `told` says so."""
    standing: dict[str, KeyValue] = {}
    async with aclosing(follow(store, prefix)) as updates:
        async for update in updates:
            if isinstance(update, Listing):
                standing = {kv.key: kv for kv in update.kvs}
            else:
                for change in update.changes:
                    standing.pop(change.key, None)
                    if change.kv is not None:
                        standing[change.key] = change.kv
            if told(standing):
                return standing
    raise AssertionError("a watch does not end")


def idle(standing: dict[str, KeyValue]) -> bool:
    """Whether the engine whose load key this is has nothing to do."""
    return all(decode(Load, kv.value) == Load() for kv in standing.values()) and bool(standing)


def leader_of(standing: dict[str, KeyValue], *ids: str) -> CoordinatorKey | None:
    """Who of `ids` says that it leads."""
    known = [decode(CoordinatorKey, kv.value) for kv in standing.values()]
    return next((each for each in known if each.leading and each.id in ids), None)


async def test_two_hundred_requests_to_a_sleeping_model_are_one_restore_and_two_hundred_answers(store: Store) -> None:
    async with coordinator(store) as c, node(store, {"a": 60, "b": 60}, 100) as n:
        await n["a"].until_phase(Phase.RESIDENT)
        assert (await c.ask("b"))[0] == 200
        await n["a"].until_phase(Phase.OFFLOADED)
        await until(store, keys.load("b"), idle)
        restores = n["a"].operations.count(Order.RESTORE)
        answers = await asyncio.gather(*(c.ask("a", prompt=str(i)) for i in range(200)))
        assert [status for status, _ in answers] == [200] * 200
        assert {answer["choices"][0]["text"] for _, answer in answers} == {"from a"}
        assert n["a"].operations.count(Order.RESTORE) == restores + 1
        assert n.daemon.worst <= 100
        fences = [revision for revision, _, _ in n.daemon.entered]
        assert fences == sorted(set(fences))


async def test_models_take_turns_on_a_device_that_holds_one(store: Store) -> None:
    async with coordinator(store) as c, node(store, {"a": 60, "b": 60, "c": 60}, 100) as n:
        for model in "abcabc":
            status, answer = await c.ask(model)
            assert (status, answer["choices"][0]["text"]) == (200, f"from {model}")
        assert n.daemon.worst <= 100
        _, decisions = await c.admin("GET", "/v1/decisions?limit=1000")
        numbers = [decision["n"] for decision in decisions["decisions"]]
        assert len(numbers) >= 6
        assert numbers == sorted(set(numbers), reverse=True)
        assert all(decision["at"] > 1e9 and decision["cause"] for decision in decisions["decisions"])


async def test_a_stream_goes_through_a_wake(store: Store) -> None:
    async with coordinator(store) as c, node(store, {"a": 60, "b": 60}, 100) as n:
        await c.ask("b")
        async with (
            ClientSession() as session,
            session.post(
                c.runtime.gateway_url + "/v1/chat/completions", json={"model": "a", "stream": True, "messages": []}
            ) as answer,
        ):
            assert answer.status == 200
            assert (await answer.read()).endswith(b"data: [DONE]\n\n")
        assert n["a"].phase is Phase.RESIDENT


async def test_a_standbys_gateway_wakes_a_model(etcd: RealEtcd, store: Store) -> None:
    other = etcd.client()
    async with coordinator(store, "c1") as leader:
        await until(store, keys.COORDINATORS, lambda standing: leader_of(standing, "c1") is not None)
        async with coordinator(other, "c2") as standby, node(store, {"a": 60, "b": 60}, 100) as n:
            for model in "ab":  # a start-up is demand too: let both be over
                assert (await leader.ask(model))[0] == 200
            await n["a"].until_phase(Phase.OFFLOADED)
            assert not standby.runtime.leading
            answers = await asyncio.gather(*(standby.ask("a") for _ in range(20)))
            assert [status for status, _ in answers] == [200] * 20
            assert n["a"].phase is Phase.RESIDENT
            await until(store, keys.ROOT + "demand/", lambda standing: not standing)
    await other.close()


async def test_a_request_sends_its_model_away_whichever_gateway_it_came_by(etcd: RealEtcd, store: Store) -> None:
    other = etcd.client()
    async with coordinator(store, "c1") as leader:
        await until(store, keys.COORDINATORS, lambda standing: leader_of(standing, "c1") is not None)
        async with coordinator(other, "c2") as standby, node(store, {"a": 60}, 100) as n:
            for asked in (leader, standby, leader):
                assert (await asked.ask("a", keep_alive="1h"))[0] == 200
                assert n["a"].phase is Phase.RESIDENT
                assert (await asked.ask("a", keep_alive=0))[0] == 200
                await n["a"].until_phase(Phase.OFFLOADED)
                await until(store, keys.ROOT + "demand/", lambda standing: not standing)
            _, told = await leader.admin("GET", "/v1/decisions?limit=1")
            assert "kept alive for 0 s" in told["decisions"][0]["cause"]
    await other.close()


async def test_a_standbys_gateway_refuses_what_the_leader_refuses(etcd: RealEtcd, store: Store) -> None:
    other = etcd.client()
    async with coordinator(store, "c1") as leader:
        await until(store, keys.COORDINATORS, lambda standing: leader_of(standing, "c1") is not None)
        async with coordinator(other, "c2") as standby, node(store, {"a": 60, "b": 60}, 100):
            await both_started(leader)
            await pin_a(leader)
            for _ in range(3):
                answers = await asyncio.gather(*(standby.ask("b") for _ in range(5)))
                assert {(status, answer["error"]["code"]) for status, answer in answers} == {(503, "model_unavailable")}
                assert all("pinned a hold" in answer["error"]["message"] for _, answer in answers)
            assert not standby.runtime.leading
            assert (await leader.admin("POST", "/v1/models/a/unpin"))[0] == 200
            await wait_for_ok(standby, "b")
            assert (await leader.admin("POST", "/v1/models/b/drain"))[0] == 200
            await until(store, keys.load("b"), idle)
            status, answer = await standby.ask("b")
            while status == 200:  # it is served until the policy has come round
                status, answer = await standby.ask("b")
            assert (status, answer["error"]["message"]) == (503, "b is drained by the operator")
            await until(store, keys.ROOT + "refusals/", lambda standing: not standing)
            await until(store, keys.ROOT + "demand/", lambda standing: not standing)
    await other.close()


async def test_no_refused_request_is_forgotten_however_they_follow_each_other(store: Store) -> None:
    """A client that asks again as soon as it is refused, beside others that do the same."""

    async def client(c: Coordinator) -> None:
        for _ in range(25):
            status, answer = await c.ask("b")
            assert (status, answer["error"]["code"]) == (503, "model_unavailable")

    async with coordinator(store) as c, node(store, {"a": 60, "b": 60}, 100):
        await both_started(c)
        await pin_a(c)
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(client(c))


async def test_an_order_given_to_a_standby_reaches_the_leader(etcd: RealEtcd, store: Store) -> None:
    other = etcd.client()
    admin = AdminSettings(port=0, api_key="k")
    headers = {"Authorization": "Bearer k"}
    async with coordinator(store, "c1", admin=admin):
        await until(store, keys.COORDINATORS, lambda standing: leader_of(standing, "c1") is not None)
        async with coordinator(other, "c2", admin=admin) as standby, node(store, {"a": 60}, 100) as n:
            await n["a"].until_phase(Phase.RESIDENT)
            status, answer = await standby.admin("POST", "/v1/models/a/sleep", headers=headers)
            assert (status, answer["accepted_by"]) == (202, "c1")
            await n["a"].until_phase(Phase.OFFLOADED)
            status, answer = await standby.admin("POST", "/v1/models/a/pin", headers=headers)
            assert (status, answer["policy"]["pin"]) == (200, True)
    await other.close()


async def test_the_death_of_an_engine_leaves_the_others_alone(store: Store) -> None:
    async with coordinator(store) as c, node(store, {"a": 60, "b": 60}, 100) as n:
        await c.ask("a")
        await n.kill("a")
        assert (await c.ask("b"))[0] == 200


async def test_orders_and_policies_of_the_operator_are_carried_out(store: Store) -> None:
    async with coordinator(store) as c, node(store, {"a": 60, "b": 60}, 100) as n:
        await both_started(c)
        await pin_a(c)
        refused, answer = await c.ask("b")
        assert (refused, answer["error"]["code"]) == (503, "model_unavailable")
        assert "pinned" in answer["error"]["message"]
        assert (await c.admin("POST", "/v1/models/a/unpin"))[0] == 200
        await wait_for_ok(c, "b")
        assert (await c.admin("POST", "/v1/models/b/sleep"))[0] == 202
        await n["b"].until_phase(Phase.OFFLOADED)
        assert (await c.admin("POST", "/v1/models/b/wake"))[0] == 202
        await n["b"].until_phase(Phase.RESIDENT)
        assert (await c.admin("POST", "/v1/models/b/drain"))[0] == 200
        await n["b"].until_phase(Phase.OFFLOADED)
        assert (await c.ask("b"))[0] == 503
        status, answer = await c.admin("PATCH", "/v1/models/b/policy", json={"drained": False, "priority": 3})
        assert (status, answer["policy"]["drained"], answer["policy"]["priority"]) == (200, False, 3)
        await wait_for_ok(c, "b")
        _, state = await c.admin("GET", "/v1/state")
        assert {model["id"]: model["settings"]["priority"] for model in state["models"]} == {"a": 0, "b": 3}


async def both_started(c: Coordinator) -> None:
    """A start-up is demand too: let it be over. Then `a` is resident, and nobody wants anything."""
    for model in "ba":
        assert (await c.ask(model))[0] == 200


async def pin_a(c: Coordinator) -> None:
    """Until its scheduler has it: what its gateway asks for is demand at once, and overtakes its watch."""
    assert (await c.admin("POST", "/v1/models/a/pin"))[0] == 200
    while True:
        _, told = await c.admin("GET", "/v1/state")
        if any(model["id"] == "a" and model["settings"]["pin"] for model in told["models"]):
            return


async def wait_for_ok(c: Coordinator, model: str) -> None:
    """A policy is obeyed once the watch has shown it: ask as a client does that was told to retry."""
    while (await c.ask(model))[0] != 200:  # noqa: ASYNC110 - HTTP tells no changes
        await asyncio.sleep(0.05)


async def until_health(c: Coordinator, status: str) -> None:
    while json.loads(await c.get("/health"))["status"] != status:  # noqa: ASYNC110 - HTTP tells no changes
        await asyncio.sleep(0.1)


async def test_a_model_that_waits_too_long_is_answered(store: Store) -> None:
    impatient = ModelSettings(keep_alive=None, min_residency=0.0, max_wait=0.3)
    async with coordinator(store, defaults=impatient, models=("a",)) as c:
        status, answer = await c.ask("a")
        assert (status, answer["error"]["code"]) == (503, "model_wait_timeout")


async def test_while_etcd_is_away_residents_serve_and_afterwards_all_goes_on(
    tmp_path: Path,
) -> None:
    etcd = RealEtcd(tmp_path, binary=find_binary({}))
    await etcd.start()
    client = etcd.client(call_timeout=1.0)
    try:
        async with coordinator(client) as c, node(client, {"a": 60, "b": 60}, 100) as n:
            await both_started(c)
            await etcd.kill()
            for _ in range(5):
                status, answer = await c.ask("a")
                assert (status, answer.get("error")) == (200, None)
            waiting = asyncio.create_task(c.ask("b"))
            await until_health(c, "degraded")
            assert (await c.ask("a"))[0] == 200
            await etcd.start()
            assert (await waiting)[0] == 200
            await until_health(c, "ok")
            assert n.daemon.worst <= 100
    finally:
        await client.close()
        await etcd.stop()


async def test_a_leader_that_is_killed_is_followed_by_a_standby(etcd: RealEtcd, store: Store, tmp_path: Path) -> None:
    config = config_file(tmp_path, ["a", "b"])
    async with (
        coordinator_process(config, etcd.url, "p1") as p1,
        coordinator_process(config, etcd.url, "p2") as p2,
        node(store, {"a": 60, "b": 60}, 100) as n,
    ):
        both = await until(store, keys.COORDINATORS, lambda standing: len(standing) == 2)
        await until(store, keys.COORDINATORS, lambda standing: leader_of(standing, "p1", "p2") is not None)
        first = leader_of(
            await until(store, keys.COORDINATORS, lambda s: leader_of(s, "p1", "p2") is not None), "p1", "p2"
        )
        assert first is not None
        second = "p2" if first.id == "p1" else "p1"
        urls = {key.id: key.gateway_url for key in (decode(CoordinatorKey, kv.value) for kv in both.values())}
        async with ClientSession() as session:
            assert await completion(session, urls[first.id], "b") == 200
            assert await completion(session, urls[first.id], "a") == 200
            before = await decisions(store)
            (p1 if first.id == "p1" else p2).kill()
            assert await completion(session, urls[second], "a") == 200  # resident: served without a leader
            assert await completion(session, urls[second], "b") == 200  # asleep: waits for the next leader
        standing = await until(store, keys.COORDINATORS, lambda s: leader_of(s, second) is not None)
        assert leader_of(standing, first.id) is None
        assert n.daemon.worst <= 100
        after = await decisions(store)
        assert len(after) > len(before)
        assert before.items() <= after.items()  # the next leader numbers above what stands


async def completion(session: ClientSession, url: str, model: str) -> int:
    async with session.post(url + "/v1/completions", json={"model": model, "prompt": "x"}) as answer:
        await answer.read()
        return answer.status


async def decisions(store: Store) -> dict[str, int]:
    """Revisions of the records that stand."""
    return {kv.key: kv.mod_revision for kv in (await store.list(keys.DECISIONS)).kvs}


async def test_a_leader_that_is_told_to_end_hands_over_at_once(etcd: RealEtcd, store: Store, tmp_path: Path) -> None:
    config = config_file(tmp_path, ["a"])
    async with coordinator_process(config, etcd.url, "p1") as p1:
        await until(store, keys.COORDINATORS, lambda standing: leader_of(standing, "p1") is not None)
        assert await p1.terminate() == 0
        leader = observe(store)
        assert await anext(leader) is None
        await leader.aclose()
        assert not (await store.list(keys.COORDINATORS)).kvs


async def test_an_etcd_that_loses_data_is_refused_by_coordinator_daemon_and_engine(
    etcd: RealEtcd, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests' own 3.5.1 is one, where nobody says that it is for development; nothing is written to it."""
    monkeypatch.delenv(VARIABLE)
    async with coordinator_process(config_file(tmp_path, ["a"]), etcd.url, "p1") as p1:
        assert await p1.ended() == 2
    with DaemonProcess(tmp_path, etcd.url, node="unsafe", devices=["0:host:64MiB"]) as daemon:
        assert await daemon.ended() == 1
    async with await LightEngine.start(tmp_path, etcd.url, "unsafe", node="unsafe", size=1 << 20) as engine:
        assert await engine.ended() != 0
    for log in (p1.log, daemon.log, engine.log):
        assert "can lose consistency when killed" in log.read_text()
    assert not [kv.key for kv in (await store.list(keys.ROOT)).kvs if "unsafe" in kv.key]


async def test_a_lost_epoch_is_replaced_by_the_leader(store: Store) -> None:
    async with coordinator(store):
        first = await until(store, keys.EPOCH, bool)
        await store.txn([], [Delete(keys.EPOCH)])
        second = await until(
            store, keys.EPOCH, lambda standing: bool(standing) and standing[keys.EPOCH] != first[keys.EPOCH]
        )
        assert second[keys.EPOCH].value != first[keys.EPOCH].value


async def test_a_strangers_value_is_shown_and_obeyed_by_nobody(store: Store) -> None:
    async with coordinator(store) as c, node(store, {"a": 60}, 100):
        await store.txn([], [Put(keys.policy("a"), b"[" * 10_000), Put(keys.spec("x"), b'{"model": 1}')])
        assert (await c.ask("a"))[0] == 200
        shown: set[str] = set()
        while shown != {keys.policy("a"), keys.spec("x")}:  # the model may have been there before its watch told
            _, state = await c.admin("GET", "/v1/state")
            shown = {each["key"] for each in state["quarantined"]}


def test_a_port_that_is_taken_ends_with_1(etcd: RealEtcd, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = config_file(tmp_path, ["a"])
        config.write_text(
            config.read_text().replace('gateway: {listen: "127.0.0.1:0"}', f'gateway: {{listen: "127.0.0.1:{port}"}}')
        )
        assert main(["--config", str(config), "--etcd", etcd.url], {VARIABLE: "development"}) == 1
    assert str(port) in caplog.text
