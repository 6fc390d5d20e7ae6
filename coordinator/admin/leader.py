"""Orders go to the leader: a coordinator that stands by passes them on, once."""

from __future__ import annotations

import logging

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, web

from coordinator.core.model import Coordinator
from coordinator.errors import SchemaError
from coordinator.gateway.problem import Problem
from coordinator.hosts import HostRefused, Peer, Peers
from coordinator.store import keys
from coordinator.store.base import Store
from coordinator.store.codec import decode

log = logging.getLogger(__name__)

FORWARDED = "X-VNPU-Forwarded"
TIMEOUT_S = 10.0
MAX_ANSWER = 1 << 20


class Leader:
    """The way to whoever leads: `coordinators/<id>` says who, the caller's own key opens its API, so that the leader
    knows and audits who asks."""

    def __init__(self, store: Store, identifier: str, peers: Peers) -> None:
        self._store = store
        self._id = identifier
        self._peers = peers

    async def forward(self, request: web.Request) -> web.Response:
        """The leader's answer to this request. Raises Problem (503) when there is none to be had."""
        if FORWARDED in request.headers:
            raise _none("this coordinator does not lead any more")
        leader = await self._find()
        peer = await self._resolve(leader)
        url = peer.base.with_path(request.raw_path, encoded=True)
        key = request.headers.get("Authorization")
        headers = {"Host": peer.host, FORWARDED: self._id, **({"Authorization": key} if key else {})}
        try:
            async with (
                ClientSession(timeout=ClientTimeout(total=TIMEOUT_S), cookie_jar=DummyCookieJar()) as session,
                session.request(request.method, url, headers=headers, allow_redirects=False) as answer,
            ):
                body = await answer.content.read(MAX_ANSWER)
                return web.Response(status=answer.status, body=body, content_type="application/json")
        except (ClientError, TimeoutError, OSError) as error:
            log.warning("the leader %s does not answer: %r", leader.id, error)
            raise _none(f"the leader {leader.id} at {leader.admin_url} does not answer") from error

    async def _find(self) -> Coordinator:
        listing = await self._store.list(keys.COORDINATORS)
        for kv in listing.kvs:
            try:
                coordinator = decode(Coordinator, kv.value)
            except SchemaError:
                continue
            if coordinator.leading and coordinator.id != self._id:
                return coordinator
        raise _none("no coordinator leads at this moment")

    async def _resolve(self, leader: Coordinator) -> Peer:
        try:
            return await self._peers.resolve(leader.admin_url)
        except HostRefused as error:
            raise _none(f"the leader is {leader.id}; {error}") from error


def _none(message: str) -> Problem:
    return Problem(503, "no_leader", message, retry_after=2)
