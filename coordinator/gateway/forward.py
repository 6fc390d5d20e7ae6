"""One attempt to have an engine answer a request.

`NotTaken` means that trying again cannot repeat anything: no byte went out, or the engine's own gate turned the
request away before vLLM saw it. Every other failure ends the request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    ConnectionTimeoutError,
    DummyCookieJar,
    TCPConnector,
    web,
)

from coordinator.core.commands import Endpoint
from coordinator.gateway.call import Call
from coordinator.gateway.problem import Problem, engine_lost
from coordinator.gateway.relay import relay
from coordinator.gateway.reply import Reply
from coordinator.hosts import HostRefused, Peer, Peers

log = logging.getLogger(__name__)

GATE = "X-VNPU-Gate"
"""On an engine's answer: its gate wrote it, vLLM has not seen the request."""
CONNECT_S = 5.0
KEEP_ALIVE_S = 3.0
"""Idle connections end before uvicorn (5 s) ends them: a request must not meet a closing connection."""
RETRY_S = 0.5
MAX_RETRY_S = 5.0


class NotTaken(Exception):
    """The engine has not begun this request; leave it alone for `retry_s` seconds."""

    def __init__(self, reason: str, retry_s: float) -> None:
        super().__init__(reason)
        self.retry_s = retry_s


class Forwarder:
    """Connections to engines. `answer_timeout_s` bounds the silence of an engine that works on a request; `answered` is
    told (model, seconds) when the first words of a good answer are here."""

    def __init__(
        self, peers: Peers, clock: Callable[[], float], answer_timeout_s: float, answered: Callable[[str, float], None]
    ) -> None:
        self._peers = peers
        self._clock = clock
        self._answered = answered
        self._known: dict[str, Peer] = {}
        self._session = ClientSession(
            connector=TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=answer_timeout_s),
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
        )

    async def close(self) -> None:
        await self._session.close()

    def forget(self, urls: set[str]) -> None:
        """Keep the resolved addresses of `urls` only: one that registers anew is resolved anew."""
        self._known = {url: peer for url, peer in self._known.items() if url in urls}

    async def attempt(self, call: Call, endpoint: Endpoint, reply: Reply) -> web.StreamResponse:
        """Have `endpoint` answer. Raises NotTaken, or Problem when the engine failed with the request in its hands."""
        upstream = await self._post(call, endpoint)
        async with upstream:
            if upstream.status == 503 and GATE in upstream.headers:
                raise NotTaken(f"the gate of {endpoint.engine} is {upstream.headers[GATE]}", _retry_after(upstream))
            if 300 <= upstream.status < 400:
                raise Problem(502, "engine_redirects", f"the engine {endpoint.engine} answered with a redirect")
            return await relay(upstream, reply, call.model, lambda: self._first(call, upstream.status))

    def _first(self, call: Call, status: int) -> None:
        if status < 400:
            self._answered(call.model, self._clock() - call.arrived)

    async def fetch(self, call: Call, endpoint: Endpoint, limit: int) -> bytes:
        """The body of a good answer of at most `limit` bytes. Raises as `attempt`; Problem for any other answer."""
        upstream = await self._post(call, endpoint)
        async with upstream:
            if upstream.status == 503 and GATE in upstream.headers:
                raise NotTaken(f"the gate of {endpoint.engine} is {upstream.headers[GATE]}", _retry_after(upstream))
            if upstream.status != 200:
                raise Problem(502, "engine_refused", f"the engine {endpoint.engine} answered {upstream.status}")
            try:
                body = await upstream.content.read(limit + 1)
                while body and len(body) <= limit and (more := await upstream.content.read(limit + 1 - len(body))):
                    body += more
            except (ClientError, TimeoutError, OSError) as error:
                raise engine_lost(call.model) from error
        if len(body) > limit:
            raise Problem(502, "engine_refused", f"the engine {endpoint.engine} answered with over {limit} bytes")
        return body

    async def _post(self, call: Call, endpoint: Endpoint) -> ClientResponse:
        peer = await self._peer(endpoint)
        headers = call.engine_headers(peer.host, self._clock())
        url = peer.base.with_path(call.path)
        try:
            return await self._session.post(url, data=call.body, headers=headers, allow_redirects=False)
        except (ClientConnectorError, ConnectionTimeoutError) as error:
            self._known.pop(endpoint.url, None)
            raise NotTaken(f"the engine {endpoint.engine} does not accept connections", RETRY_S) from error
        except (ClientError, TimeoutError, OSError) as error:
            log.warning("engine %s failed a request of %s: %r", endpoint.engine, call.model, error)
            raise engine_lost(call.model) from error

    async def _peer(self, endpoint: Endpoint) -> Peer:
        if endpoint.url not in self._known:
            try:
                self._known[endpoint.url] = await self._peers.resolve(endpoint.url)
            except HostRefused as error:
                raise NotTaken(str(error), MAX_RETRY_S) from error
        return self._known[endpoint.url]


def _retry_after(upstream: ClientResponse) -> float:
    try:
        asked = float(upstream.headers.get("Retry-After", RETRY_S))
    except ValueError:
        asked = RETRY_S
    return min(max(asked, RETRY_S), MAX_RETRY_S)
