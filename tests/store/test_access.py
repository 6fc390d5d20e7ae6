"""Getting in: endpoints, users whose tokens run out, TLS with and without client certificates; nothing leaks."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from coordinator.errors import ConfigError, StoreError, StoreUnavailable
from coordinator.store import connect
from coordinator.store.access import access_from, credentials_apart
from coordinator.store.base import Put
from coordinator.store.transport import Refused
from tests.helpers.certificates import Authority
from tests.helpers.etcd import RealEtcd, etcd34_binary, running_etcd
from tests.helpers.proxy import Proxy
from tests.helpers.store import keys_of, put, take

PASSWORD = "p@ss/word"


def b64(text: str) -> bytes:
    return text.encode()  # msgspec writes bytes as base64


async def _secure(etcd: RealEtcd) -> None:
    """A root, and the user `vnpu` who may do everything under /mine/."""
    calls: list[tuple[str, dict[str, object]]] = [
        ("/auth/user/add", {"name": "root", "password": PASSWORD}),
        ("/auth/role/add", {"name": "root"}),
        ("/auth/user/grant", {"user": "root", "role": "root"}),
        ("/auth/user/add", {"name": "vnpu", "password": PASSWORD}),
        ("/auth/role/add", {"name": "mine"}),
        (
            "/auth/role/grant",
            {"name": "mine", "perm": {"permType": "READWRITE", "key": b64("/mine/"), "range_end": b64("/mine0")}},
        ),
        ("/auth/user/grant", {"user": "vnpu", "role": "mine"}),
        ("/auth/enable", {}),
    ]
    for path, body in calls:
        await etcd.call(path, body)


@pytest.fixture(scope="module", params=["3.5", pytest.param("3.4", marks=pytest.mark.system)])
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEtcd]:
    """An etcd with access control."""
    old = request.param == "3.4"
    folder = tmp_path_factory.mktemp("secured")
    with running_etcd(folder, binary=etcd34_binary() if old else None) as etcd:
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(_secure(etcd))
        yield etcd


async def test_a_user_works_where_it_may_and_is_refused_elsewhere(secured: RealEtcd) -> None:
    store = secured.client(user="vnpu", password=PASSWORD)
    at = await put(store, "/mine/a", b"1")
    async with aclosing(store.watch("/mine/", at)) as watch:
        assert keys_of(await take(watch, 1)) == ["/mine/a"]
    with pytest.raises(Refused, match="permission denied"):
        await store.list("/yours/")
    with pytest.raises(Refused, match="permission denied"):
        await put(store, "/yours/a")
    with pytest.raises(Refused, match="permission denied"):
        async with aclosing(store.watch("/yours/", at)) as watch:
            await take(watch, 1)
    await store.close()


async def test_a_token_that_ran_out_is_renewed_for_calls_and_watches(secured: RealEtcd) -> None:
    """etcd keeps its tokens in memory: a restart ends them all."""
    store = secured.client(user="vnpu", password=PASSWORD)
    start = await put(store, "/mine/a")
    async with aclosing(store.watch("/mine/", start)) as watch:
        await take(watch, 1)
        await secured.stop()  # in good order: a killed one replays its last logins
        await secured.start()
        following = asyncio.create_task(take(watch, 2))
        other = secured.client(user="vnpu", password=PASSWORD)
        await put(other, "/mine/b")
        await other.close()
        await asyncio.sleep(0)
        await put(store, "/mine/c")
        assert keys_of(await following) == ["/mine/b", "/mine/c"]
        lease = await store.grant_lease(30)
        assert await store.keep_alive(lease) == 30.0
        await store.revoke_lease(lease)
    await store.close()


async def test_a_call_s_token_that_ran_out_is_renewed_once(secured: RealEtcd) -> None:
    store = secured.client(user="vnpu", password=PASSWORD)
    await put(store, "/mine/a")
    await secured.stop()  # in good order: a killed one replays its last logins
    await secured.start()
    await put(store, "/mine/b")  # a write too: it certainly was not applied under the old token
    assert await store.get("/mine/b")
    await store.close()


async def test_a_wrong_password_is_told_at_once_and_not_shown(secured: RealEtcd) -> None:
    store = secured.client(user="vnpu", password="wrong-secret")
    with pytest.raises(StoreError, match="authentication failed") as raised:
        await store.get("/mine/a")
    assert "wrong-secret" not in str(raised.value)
    await store.close()


async def test_no_user_where_one_is_needed_is_told(secured: RealEtcd) -> None:
    store = secured.client()
    with pytest.raises(Refused, match="user name is empty"):
        await store.get("/mine/a")
    with pytest.raises(Refused):
        async with aclosing(store.watch("/mine/", 1)) as watch:
            await take(watch, 1)
    await store.close()


async def test_a_user_where_none_is_needed_is_fine(real: RealEtcd, prefix: str) -> None:
    store = real.client(user="vnpu", password=PASSWORD)
    await put(store, f"{prefix}a")
    assert await store.get(f"{prefix}a")
    await store.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


async def test_tls_with_our_authority_and_a_client_certificate(
    real: RealEtcd, authority: Authority, prefix: str
) -> None:
    async with Proxy(real.port, tls=authority.server_context(client_needed=True)) as proxy:
        cert, key = authority.client_files
        store = connect([proxy.url], ca=authority.ca_file, cert=cert, key=key, environ={})
        at = await put(store, f"{prefix}a")
        async with aclosing(store.watch(prefix, at)) as watch:
            assert keys_of(await take(watch, 1)) == [f"{prefix}a"]
        await store.close()

        nameless = connect([proxy.url], ca=authority.ca_file, call_timeout=0.5, environ={})
        with pytest.raises(StoreError):
            await nameless.get(f"{prefix}a")
        await nameless.close()


async def test_a_server_of_another_authority_is_not_trusted(real: RealEtcd, authority: Authority) -> None:
    async with Proxy(real.port, tls=authority.server_context(client_needed=False)) as proxy:
        store = connect([proxy.url], call_timeout=2.0, environ={})
        with pytest.raises(StoreUnavailable, match="certificate"):
            await store.txn([], [Put("/never", b"")])
        await store.close()


def test_what_arguments_leave_open_the_url_and_then_the_environment_say(authority: Authority) -> None:
    environ = {"VNPU_ETCD_USER": "env", "VNPU_ETCD_PASSWORD": "env-password", "VNPU_ETCD_CA": str(authority.ca_file)}
    access = access_from(["https://a:1", "b"], environ)
    assert [endpoint.url for endpoint in access.endpoints] == ["https://a:1", "http://b:2379"]
    assert (access.user, access.password, isinstance(access.tls, ssl.SSLContext)) == ("env", "env-password", True)
    access = access_from(["http://url:p%40ss@[::1]:1"], environ)
    assert access.endpoints[0].url == "http://[::1]:1"
    assert (access.user, access.password, access.tls) == ("url", "p@ss", None)
    assert access_from(["http://url:p@a"], environ, user="arg", password="q").user == "arg"


def test_a_password_shows_nowhere() -> None:
    access = access_from(["http://u:secret@a:1"], {})
    assert "secret" not in repr(access)
    assert "secret" not in "".join(endpoint.url for endpoint in access.endpoints)


def test_credentials_are_taken_apart_for_command_lines_and_give_the_same_access() -> None:
    given = ["http://u:p%40ss@a:1", "b:2", "https://[::1]:3"]
    bare, environ = credentials_apart(given)
    assert bare == ("http://a:1", "b:2", "https://[::1]:3")
    assert environ == {"VNPU_ETCD_USER": "u", "VNPU_ETCD_PASSWORD": "p@ss"}
    ours, theirs = access_from(bare, environ), access_from(given, {})
    assert (ours.endpoints, ours.user, ours.password) == (theirs.endpoints, theirs.user, theirs.password)
    assert credentials_apart(["http://a:1"]) == (("http://a:1",), {})


@pytest.mark.parametrize(
    ("endpoints", "environ", "says"),
    [
        ([], {}, "no etcd endpoint"),
        (["ftp://a"], {}, "no http or https URL"),
        (["http://"], {}, "no http or https URL"),
        (["http://a:99999"], {}, "no URL"),
        (["http://a:0"], {}, "no http or https URL"),
        (["http://a/v3"], {}, "has a path"),
        (["http://u:secret@a/v3"], {}, "'a/v3' has a path"),
        (["http://u@a"], {}, "has no password"),
        (["https://a"], {"VNPU_ETCD_CA": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        (["https://a"], {"VNPU_ETCD_CERT": "/nowhere/c.pem"}, "/nowhere/c.pem"),
        (["https://a"], {"VNPU_ETCD_KEY": "/nowhere/k.pem"}, "no certificate"),
    ],
)
def test_what_cannot_be_used_is_named(endpoints: list[str], environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        access_from(endpoints, environ)
    assert "secret" not in str(raised.value)


def test_the_certificate_without_its_key_is_named(authority: Authority, tmp_path: Path) -> None:
    cert, _ = authority.client_files
    with pytest.raises(ConfigError, match="client certificate"):
        access_from(["https://a"], {}, cert=cert)
