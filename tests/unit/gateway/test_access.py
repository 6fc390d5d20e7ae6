"""Who may use the gateway, and what becomes of the key that was sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import pytest

from coordinator.admin.keyring import hash_key
from coordinator.errors import ConfigError
from tests.helpers.gateway import gateway
from tests.helpers.openai_stub import OpenAIStub, serving

KEYS = {"anna": hash_key("annas key"), "ben": hash_key("bens key")}
OPEN = ("0.0.0.0", "::", "192.168.1.5", "gateway.example", "::ffff:10.0.0.1")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("host", OPEN)
async def test_without_a_key_it_is_not_made_for_other_machines(host: str) -> None:
    with pytest.raises(ConfigError, match="no key protects it"):
        async with gateway(host=host):
            pass


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("nobodys"),
        bearer(""),
        bearer(KEYS["anna"]),
        {"Authorization": "Basic annas key"},
        {"X-Api-Key": "nobodys"},
        bearer("annas key") | {"X-Api-Key": "annas key"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/m", "/running", "/metrics", "/nowhere", "/v1/completions"])
async def test_nothing_but_health_is_open_without_a_key(path: str, headers: Mapping[str, str]) -> None:
    async with serving(OpenAIStub()) as stub, gateway(api_keys=KEYS) as bench:
        bench.route("m", stub.url)
        async with bench.post({"model": "m"}, path, headers) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (401, "invalid_api_key")
        assert (await bench.get(path, headers))[0].status == 401
        assert (await bench.get("/health", headers))[0].status == 200
    assert stub.seen == []


@pytest.mark.parametrize("headers", [bearer("annas key"), {"X-Api-Key": "bens key"}])
async def test_a_key_opens_and_goes_no_further(headers: Mapping[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(OpenAIStub()) as stub, gateway(api_keys=KEYS) as bench:
        bench.route("m", stub.url)
        async with bench.post({"model": "m"}, headers=headers) as answer:
            assert answer.status == 200
    assert not {"Authorization", "X-Api-Key"} & set(stub.seen[0].headers)
    assert "caller=anna" in caplog.text or "caller=ben" in caplog.text
    assert "s key" not in caplog.text


async def test_a_request_without_a_key_is_answered_before_its_body_is_read() -> None:
    async with gateway(api_keys=KEYS) as bench:
        host, port = bench.gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100000\r\n\r\n".encode())
        assert b"401" in await reader.readline()
        writer.close()


async def test_keys_change_while_it_runs() -> None:
    async with gateway(api_keys=KEYS, host="0.0.0.0") as bench:
        url = bench.gateway.url.replace("0.0.0.0", "127.0.0.1") + "/v1/models"

        async def status(key: str) -> int:
            async with bench.session.get(url, headers=bearer(key)) as answer:
                return answer.status

        assert await status("annas key") == 200
        bench.gateway.change_keys({"new": hash_key("new key")})
        assert (await status("annas key"), await status("new key")) == (401, 200)
        with pytest.raises(ConfigError):
            bench.gateway.change_keys({})
        assert await status("new key") == 200
