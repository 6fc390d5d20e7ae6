"""Which etcd is used, which is warned of, which is refused."""

from __future__ import annotations

import logging

import pytest

from coordinator.errors import ConfigError, StoreUnavailable
from coordinator.store import connect, wire
from coordinator.store.access import Access, Endpoint
from coordinator.store.channel import Channel
from coordinator.store.etcd import EtcdStore
from coordinator.store.floor import VARIABLE, Check, Verdict, check_of, development, judge
from coordinator.store.preflight import preflight
from coordinator.store.transport import NotSent
from tests.helpers.etcd import RealEtcd
from tests.helpers.proxy import Proxy

DEVELOPMENT = {VARIABLE: "development"}


@pytest.mark.parametrize("version", ["3.5.33", "3.5.40", "3.6.14", "3.7.1", "3.8.0", "4.0.0"])
@pytest.mark.parametrize("auth", [False, True])
@pytest.mark.parametrize("check", Check)
def test_versions_above_the_floor_are_fine(version: str, auth: bool, check: Check) -> None:
    assert judge(version, auth=auth, check=check) == Verdict()


@pytest.mark.parametrize("version", ["3.5.0", "3.5.1", "3.5.2"])
def test_versions_that_lose_consistency_are_for_development_only(version: str) -> None:
    assert judge(version, auth=False).refusals
    assert judge(version, auth=False, check=Check.DEVELOPMENT) == Verdict()


@pytest.mark.parametrize("version", ["3.4.23", "3.5.3", "3.5.32", "3.6.0", "3.6.13", "3.7.0", "3.7.0-rc.1"])
def test_versions_below_the_floor_are_refused_with_auth_and_warned_of_without(version: str) -> None:
    verdict = judge(version, auth=False)
    assert (verdict.refusals, len(verdict.warnings)) == ((), 1)
    for check in (Check.STRICT, Check.DEVELOPMENT):
        verdict = judge(version, auth=True, check=check)
        assert (len(verdict.refusals), verdict.warnings) == (1, ())
    assert judge(version, auth=False, check=Check.DEVELOPMENT) == Verdict()


@pytest.mark.parametrize("version", ["3.3.25", "2.3.8", "", "nonsense"])
def test_what_is_no_etcd_we_know_is_refused(version: str) -> None:
    assert judge(version, auth=False, check=Check.DEVELOPMENT).refusals
    assert judge(version, auth=True, check=Check.OFF) == Verdict()


def test_the_environment_says_how_much_is_asked() -> None:
    assert check_of({}) is check_of({VARIABLE: ""}) is Check.STRICT
    assert check_of(DEVELOPMENT) is Check.DEVELOPMENT
    with pytest.raises(ConfigError, match=r"CHECK='none' is no check \(give one of strict, development, off\)"):
        check_of({VARIABLE: "none"})
    assert development({}) == DEVELOPMENT
    assert development({VARIABLE: "off"}) == {VARIABLE: "off"}


async def test_the_members_themselves_are_asked(real: RealEtcd) -> None:
    store = connect([real.url], environ=DEVELOPMENT, vetted=True)
    assert list(await preflight(store)) == [real.url]
    await store.close()
    secured = connect([real.url], user="vnpu", password="secret", environ=DEVELOPMENT, vetted=True)
    with pytest.raises(ConfigError, match=f"{real.url}: etcd 3.*upgrade to 3.5.33") as raised:
        await preflight(secured)
    assert "secret" not in str(raised.value)
    await secured.close()


async def test_a_member_that_is_away_is_warned_of_and_none_at_all_is_an_error(
    real: RealEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    async with Proxy(real.port) as proxy:
        gone = proxy.url
    store = connect([real.url, gone], environ={})
    with caplog.at_level(logging.WARNING):
        assert list(await preflight(store)) == [real.url]
    assert gone in caplog.text
    await store.close()
    store = connect([gone], environ={})
    with pytest.raises(StoreUnavailable, match="VNPU_ETCD_ENDPOINTS"):
        await preflight(store)
    await store.close()


class Scripted:
    """A transport of members that say these versions; None: away. Counts the questions, and answers every call."""

    def __init__(self, versions: dict[str, str | None]) -> None:
        self.versions = versions
        self.asked: list[str] = []
        self.called: list[str] = []

    async def version(self, endpoint: Endpoint, *, timeout: float) -> str:
        self.asked.append(endpoint.host)
        version = self.versions[endpoint.host]
        if version is None:
            raise NotSent(f"{endpoint.host} is away")
        return version

    async def post(self, endpoint: Endpoint, path: str, body: bytes, *, timeout: float, token: str) -> bytes:
        self.called.append(endpoint.host)
        return b"{}"

    async def close(self) -> None:
        """Nothing is open."""


def store_of(transport: Scripted, check: Check) -> EtcdStore:
    access = Access(tuple(Endpoint("http", host, 2379) for host in transport.versions))
    channel = Channel(transport, access, call_timeout=5.0, check=check)  # type: ignore[arg-type]
    return EtcdStore(channel, stall=5.0)


async def test_each_member_is_asked_once_before_its_first_call(caplog: pytest.LogCaptureFixture) -> None:
    transport = Scripted({"a": "3.4.23"})
    store = store_of(transport, Check.STRICT)
    for _ in range(3):
        await store.channel.rpc("/kv/range", {}, wire.Reply)
    assert (transport.asked, transport.called) == (["a"], ["a"] * 3)
    assert caplog.text.count("http://a:2379: etcd 3.4.23 has known security holes") == 1


@pytest.mark.parametrize(("version", "check"), [("3.5.1", Check.STRICT), ("3.3.9", Check.DEVELOPMENT)])
async def test_no_call_reaches_a_member_that_must_not_be_used(version: str, check: Check) -> None:
    transport = Scripted({"a": version})
    store = store_of(transport, check)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"http://a:2379: etcd {version}"):
            await store.channel.rpc("/kv/range", {}, wire.Reply)
    with pytest.raises(ConfigError, match=f"http://a:2379: etcd {version}"):
        await anext(store.watch("/", 1))
    assert transport.called == []


async def test_an_unfit_member_is_done_without_while_another_may_be_used(caplog: pytest.LogCaptureFixture) -> None:
    """However late it shows: who serves goes on. It is asked again, for it may have been upgraded."""
    transport = Scripted({"a": None, "b": "3.8.0"})
    store = store_of(transport, Check.STRICT)
    await store.channel.rpc("/kv/range", {}, wire.Reply)
    assert transport.called == ["b"]
    transport.versions["a"] = "3.5.0"
    for _ in range(2):
        store.channel.avoid(store.channel.endpoint)
        await store.channel.rpc("/kv/range", {}, wire.Reply)
    assert transport.called == ["b"] * 3
    assert caplog.text.count("http://a:2379: etcd 3.5.0") == 1
    transport.versions["a"] = "3.8.0"
    store.channel.avoid(store.channel.endpoint)
    await store.channel.rpc("/kv/range", {}, wire.Reply)
    assert transport.called == ["b"] * 3 + ["a"]


async def test_where_no_member_may_be_used_each_is_named() -> None:
    transport = Scripted({"a": "3.5.0", "b": "3.3.1"})
    with pytest.raises(ConfigError, match=r"http://a:2379: etcd 3\.5\.0.*http://b:2379: etcd 3\.3\.1"):
        await store_of(transport, Check.STRICT).channel.rpc("/kv/range", {}, wire.Reply)
    assert transport.called == []


async def test_who_is_told_to_ask_nothing_asks_nothing() -> None:
    transport = Scripted({"a": "nonsense"})
    await store_of(transport, Check.OFF).channel.rpc("/kv/range", {}, wire.Reply)
    assert (transport.asked, transport.called) == ([], ["a"])
