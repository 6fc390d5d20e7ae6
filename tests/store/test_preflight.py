"""Which etcd is used, which is warned of, which is refused."""

from __future__ import annotations

import logging

import pytest

from coordinator.errors import ConfigError, StoreUnavailable
from coordinator.store import connect
from coordinator.store.preflight import Verdict, judge, preflight
from tests.helpers.etcd import RealEtcd
from tests.helpers.proxy import Proxy


@pytest.mark.parametrize("version", ["3.5.33", "3.5.40", "3.6.14", "3.7.1", "3.8.0", "4.0.0"])
@pytest.mark.parametrize("auth", [False, True])
@pytest.mark.parametrize("embedded", [False, True])
def test_versions_above_the_floor_are_fine(version: str, auth: bool, embedded: bool) -> None:
    assert judge(version, auth=auth, embedded=embedded) == Verdict()


@pytest.mark.parametrize("version", ["3.5.0", "3.5.1", "3.5.2"])
def test_versions_that_lose_consistency_are_for_development_only(version: str) -> None:
    assert judge(version, auth=False, embedded=False).refusals
    assert judge(version, auth=False, embedded=True) == Verdict()


@pytest.mark.parametrize("version", ["3.4.23", "3.5.3", "3.5.32", "3.6.0", "3.6.13", "3.7.0", "3.7.0-rc.1"])
def test_versions_below_the_floor_are_refused_with_auth_and_warned_of_without(version: str) -> None:
    verdict = judge(version, auth=False, embedded=False)
    assert (verdict.refusals, len(verdict.warnings)) == ((), 1)
    for embedded in (False, True):
        verdict = judge(version, auth=True, embedded=embedded)
        assert (len(verdict.refusals), verdict.warnings) == (1, ())
    assert judge(version, auth=False, embedded=True) == Verdict()


@pytest.mark.parametrize("version", ["3.3.25", "2.3.8", "", "nonsense"])
def test_what_is_no_etcd_we_know_is_refused(version: str) -> None:
    assert judge(version, auth=False, embedded=True).refusals


async def test_the_members_themselves_are_asked(real: RealEtcd, caplog: pytest.LogCaptureFixture) -> None:
    store = real.client()
    assert list(await preflight(store, embedded=True)) == [real.url]
    await store.close()
    secured = real.client(user="vnpu", password="secret")
    with pytest.raises(ConfigError, match=f"{real.url}: etcd 3.*upgrade to 3.5.33") as raised:
        await preflight(secured, embedded=True)
    assert "secret" not in str(raised.value)
    await secured.close()


async def test_a_member_that_is_away_is_warned_of_and_none_at_all_is_an_error(
    real: RealEtcd, caplog: pytest.LogCaptureFixture
) -> None:
    async with Proxy(real.port) as proxy:
        gone = proxy.url
    store = connect([real.url, gone], environ={})
    with caplog.at_level(logging.WARNING):
        assert list(await preflight(store, embedded=True)) == [real.url]
    assert gone in caplog.text
    await store.close()
    store = connect([gone], environ={})
    with pytest.raises(StoreUnavailable, match="VNPU_ETCD_ENDPOINTS"):
        await preflight(store)
    await store.close()
