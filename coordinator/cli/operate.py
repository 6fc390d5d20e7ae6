"""What `vnpu-watch` asks of the admin API: pin, unpin, sleep, wake, drain, resume."""

from __future__ import annotations

from urllib.parse import quote

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar
from yarl import URL

from coordinator.errors import VnpuError
from coordinator.hosts import HostRefused, Peers

ACTS = ("pin", "unpin", "sleep", "wake", "drain", "resume")
TIMEOUT_S = 15.0


class Operator:
    """`admin`: the URL that the user named; empty: what etcd says, as far as its host is loopback or in `hosts`: the
    key goes there."""

    def __init__(self, admin: str, key: str, hosts: str) -> None:
        self._admin = admin
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._peers = Peers(hosts.split(","))

    async def act(self, what: str, model: str, known: str) -> dict[str, object]:
        """The API's answer; `known` is the leader's URL in etcd. Raises VnpuError with what the API said."""
        base, headers = await self._base(known)
        url = URL(f"{base}/v1/models/{quote(model, safe='')}/{what}", encoded=True)
        try:
            async with (
                ClientSession(timeout=ClientTimeout(total=TIMEOUT_S), cookie_jar=DummyCookieJar()) as session,
                session.post(url, headers=headers, allow_redirects=False) as answer,
            ):
                told = _decoded(await answer.read())
                if answer.status < 300:
                    return told
        except (ClientError, TimeoutError, OSError) as error:
            raise VnpuError(f"the admin API at {base} does not answer: {error!r}", remedy="--admin URL") from None
        raise VnpuError(f"{what} {model}: {_message(told)}", remedy=_REMEDIES.get(answer.status, ""))

    async def _base(self, known: str) -> tuple[str, dict[str, str]]:
        if self._admin:
            return self._admin.rstrip("/"), self._headers
        if not known:
            raise VnpuError("nobody leads at this moment", remedy="try again, or name a coordinator: --admin URL")
        try:
            peer = await self._peers.resolve(known)
        except HostRefused as error:
            raise VnpuError(f"the key is not sent there: {error}", remedy="or name it: --admin URL") from None
        return str(peer.base).rstrip("/"), {**self._headers, "Host": peer.host}


_REMEDIES = {401: "export VNPU_ADMIN_KEY=…", 403: "use a key with role operate, or another name of that host"}


def _decoded(body: bytes) -> dict[str, object]:
    try:
        return msgspec.json.decode(body, type=dict[str, object])
    except msgspec.DecodeError:
        return {}


def _message(told: dict[str, object]) -> str:
    error = told.get("error")
    return str(error.get("message")) if isinstance(error, dict) else "it answered no JSON: is this the admin API?"
