"""Keys of the admin API: hashed at rest, told apart by role, every command audited."""

from __future__ import annotations

import logging

import pytest

from coordinator.admin.keyring import Caller, Role, find, hash_key, known_keys, new_key
from coordinator.errors import ConfigError
from tests.helpers.admin import Core, admin

READER, WRITER = new_key(), new_key()
ROLES = {"read": {"grafana": hash_key(READER)}, "operate": {"anna": hash_key(WRITER)}}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_is_known_by_its_hash_and_the_hash_opens_nothing() -> None:
    keys = known_keys(hash_key("the key"), ROLES)
    assert find(keys, "the key") == Caller("admin", Role.OPERATE)
    assert find(keys, READER) == Caller("grafana", Role.READ)
    assert find(keys, WRITER) == Caller("anna", Role.OPERATE)
    assert [find(keys, wrong) for wrong in ("", "x", hash_key("the key"), hash_key(READER), READER[:-1])] == [None] * 5


def test_no_key_shows_in_a_repr() -> None:
    [key] = known_keys("the key", {})
    assert "the key" not in repr(key)
    assert key.digest.hex() not in repr(key)


def test_new_keys_differ() -> None:
    assert len({new_key() for _ in range(10)}) == 10


async def test_a_key_that_reads_reads_and_does_nothing_else() -> None:
    async with admin(roles=ROLES) as bench:
        assert (await bench.ask("GET", "/v1/state", headers=bearer(READER)))[0] == 200
        for method, path in (
            ("POST", "/v1/models/a/wake"),
            ("POST", "/v1/models/a/pin"),
            ("POST", "/v1/config/reload"),
        ):
            status, answer = await bench.ask(method, path, headers=bearer(READER))
            assert (status, answer["error"]["code"]) == (403, "read_only")
        assert bench.core.orders == []
        assert await bench.policy("a") is None


async def test_an_order_carries_the_name_of_whoever_gave_it() -> None:
    async with admin(roles=ROLES) as bench:
        assert (await bench.ask("POST", "/v1/models/a/wake", headers=bearer(WRITER)))[0] == 202
        assert [asked.by for asked in bench.core.orders] == ["anna"]


async def test_every_command_leaves_one_line_obeyed_or_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "coordinator.admin.audit")
    async with admin(roles=ROLES) as bench:
        await bench.ask("POST", "/v1/models/org%2Fb/wake", headers=bearer(WRITER))
        await bench.ask("POST", "/v1/models/a/pin", headers=bearer(READER))
        await bench.ask("PATCH", "/v1/models/a/policy", json={"pin": 3}, headers=bearer(WRITER))
        await bench.ask("POST", "/v1/models/a/pin", headers=bearer("guess"))
        await bench.ask("GET", "/v1/state", headers=bearer(READER))
    assert [record.getMessage() for record in caplog.records if record.name == "coordinator.admin.audit"] == [
        "anna (operate) from 127.0.0.1: POST /v1/models/org%2Fb/wake -> 202",
        "grafana (read) from 127.0.0.1: POST /v1/models/a/pin -> 403",
        "anna (operate) from 127.0.0.1: PATCH /v1/models/a/policy -> 400",
        "nobody (read) from 127.0.0.1: POST /v1/models/a/pin -> 401",
    ]
    assert READER not in caplog.text
    assert WRITER not in caplog.text


async def test_a_command_that_breaks_is_audited_too(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Core):
        def order(self, asked: object) -> None:
            raise ZeroDivisionError

    caplog.set_level(logging.INFO, "coordinator.admin.audit")
    async with admin(core=Broken()) as bench, bench.session.post(bench.url + "/v1/models/a/wake") as answer:
        assert answer.status == 500
    assert "somebody on this machine (operate) from 127.0.0.1: POST /v1/models/a/wake -> 500" in caplog.text


async def test_keys_change_while_it_listens_and_a_public_listener_keeps_one() -> None:
    async with admin("the key", host="127.0.0.1") as bench:
        bench.running.change_keys(hash_key("another"), {})
        assert (await bench.ask("GET", "/v1/state", headers=bearer("the key")))[0] == 401
        assert (await bench.ask("GET", "/v1/state", headers=bearer("another")))[0] == 200
    async with admin("the key", host="0.0.0.0") as bench:
        with pytest.raises(ConfigError, match="no key protects it"):
            bench.running.change_keys("", {})
        assert (await bench.ask("GET", "/v1/state", headers=bearer("the key")))[0] == 200
