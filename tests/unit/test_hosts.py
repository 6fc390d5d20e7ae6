"""Names we answer to, hosts we connect to."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp.test_utils import make_mocked_request

from coordinator.hosts import HostGuard, HostRefused, Peers, advertised, is_loopback

REFUSED = [
    "http://169.254.169.254:80",
    "http://[::ffff:169.254.169.254]:80",
    "http://10.0.0.1:8000",
    "http://[fe80::1]:8000",
    "http://0.0.0.0:8000",
    "http://[::]:8000",
    "http://evil.example:8000",
    "http://localhost.evil.example:8000",
    "https://127.0.0.1:8000",
    "file:///etc/passwd",
    "http://user:pass@127.0.0.1:8000",
    "http://127.0.0.1:8000/path",
    "http://127.0.0.1:8000?x=1",
    "http://127.0.0.1:8000#x",
    "http://127.0.0.1\\@evil.example:8000",
    "http://127.0.0.1:99999",
    "http://2130706433.evil:80",
    "//127.0.0.1:80",
    "127.0.0.1:80",
    "",
    "http://",
]


@pytest.mark.parametrize("url", REFUSED)
async def test_urls_that_are_not_plain_loopback_are_refused(url: str) -> None:
    with pytest.raises(HostRefused):
        await Peers().resolve(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://127.8.9.1:1/", "http://[::1]:8000"])
async def test_loopback_passes(url: str) -> None:
    peer = await Peers().resolve(url)
    assert is_loopback(peer.base.host or "")


async def test_localhost_must_resolve_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, "93.184.216.34")
    with pytest.raises(HostRefused):
        await Peers().resolve("http://localhost:8000")


async def test_an_allowed_name_is_connected_to_under_the_address_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, "172.18.0.5")
    peer = await Peers(["engine-a"]).resolve("http://engine-a:8000")
    assert (str(peer.base), peer.host) == ("http://172.18.0.5:8000", "engine-a:8000")


async def test_an_allowed_name_that_points_at_link_local_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, "169.254.169.254")
    with pytest.raises(HostRefused):
        await Peers(["engine-a"]).resolve("http://engine-a:8000")


async def test_a_name_that_does_not_resolve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, None)
    with pytest.raises(HostRefused):
        await Peers(["engine-a"]).resolve("http://engine-a:8000")


def answer_with(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    """Let every name resolve to `address`."""

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        if address is None:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({"Host": "127.0.0.1:8081"}, False),
        ({"Host": "localhost:8081"}, False),
        ({"Host": "[::1]:8081"}, False),
        ({"Host": "coordinator:8081"}, False),
        ({"Host": "evil.example"}, True),
        ({"Host": "localhost.evil.example"}, True),
        ({"Host": "[::1"}, True),
        ({"Host": ""}, True),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, False),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, True),
        ({"Host": "localhost:1", "Origin": "null"}, True),
        ({"Host": "localhost:1", "Sec-Fetch-Site": "cross-site"}, True),
        ({"Host": "localhost:1", "Sec-Fetch-Site": "same-origin"}, False),
    ],
)
def test_who_may_ask_from_where(headers: dict[str, str], refused: bool) -> None:
    guard = HostGuard(["coordinator"])
    assert bool(guard.fault(make_mocked_request("GET", "/", headers=headers))) is refused


def test_a_wildcard_is_advertised_by_this_machines_name() -> None:
    assert advertised("http://127.0.0.1:80") == "http://127.0.0.1:80"
    assert socket.gethostname() in advertised("http://0.0.0.0:8080")
