"""One attempt to have an engine answer a request.

`NotTaken` means that trying again cannot repeat anything: no byte went out, or the engine's own gate turned the
request away before vLLM saw it. Every other failure ends the request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from errno import EMFILE, ENFILE

from coordinator.core.commands import Endpoint
from coordinator.gateway.call import Call
from coordinator.gateway.problem import Problem, engine_lost
from coordinator.gateway.relay import relay
from coordinator.gateway.reply import Reply
from coordinator.hosts import HostRefused, Peer, Peers
from coordinator.http1.head import request_head
from coordinator.http1.upstream import BrokenOff, Pool, Upstream

log = logging.getLogger(__name__)

GATE = "X-VNPU-Gate"
"""On an engine's answer: its gate wrote it, vLLM has not seen the request."""
CONNECT_S = 5.0
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
        self._pool = Pool(answer_timeout_s)

    async def close(self) -> None:
        await self._pool.close()

    def forget(self, urls: set[str]) -> None:
        """Keep the resolved addresses of `urls` only: one that registers anew is resolved anew."""
        self._known = {url: peer for url, peer in self._known.items() if url in urls}

    async def attempt(self, call: Call, endpoint: Endpoint, reply: Reply) -> None:
        """Have `endpoint` answer. Raises NotTaken, or Problem when the engine failed with the request in its hands."""
        peer = await self._peer(endpoint)
        upstream = await self._connected(peer, endpoint)
        try:
            await self._ask(upstream, call, endpoint, peer)
            if 300 <= upstream.status < 400:
                raise Problem(502, "engine_redirects", f"the engine {endpoint.engine} answered with a redirect")
            await relay(upstream, reply, call.model, lambda: self._first(call, upstream.status))
        finally:  # what was not read whole ends here, and so does the engine's work
            self._pool.give(peer.address, upstream)

    def _first(self, call: Call, status: int) -> None:
        if status < 400:
            self._answered(call.model, self._clock() - call.arrived)

    async def fetch(self, call: Call, endpoint: Endpoint, limit: int) -> bytes:
        """The body of a good answer of at most `limit` bytes. Raises as `attempt`; Problem for any other answer."""
        peer = await self._peer(endpoint)
        upstream = await self._connected(peer, endpoint)
        try:
            await self._ask(upstream, call, endpoint, peer)
            if upstream.status != 200:
                raise Problem(502, "engine_refused", f"the engine {endpoint.engine} answered {upstream.status}")
            body = b""
            while len(body) <= limit and (more := await upstream.read()):
                body += more
        except BrokenOff as error:
            raise engine_lost(call.model) from error
        finally:
            self._pool.give(peer.address, upstream)
        if len(body) > limit:
            raise Problem(502, "engine_refused", f"the engine {endpoint.engine} answered with over {limit} bytes")
        return body

    async def _connected(self, peer: Peer, endpoint: Endpoint) -> Upstream:
        try:
            return await self._pool.take(peer.address, CONNECT_S)
        except (OSError, TimeoutError) as error:
            self._known.pop(endpoint.url, None)
            if isinstance(error, OSError) and error.errno in (EMFILE, ENFILE):
                raise NotTaken(
                    "this gateway has no file descriptor left (raise its limit of open files)", RETRY_S
                ) from error
            raise NotTaken(f"the engine {endpoint.engine} does not accept connections", RETRY_S) from error

    async def _ask(self, upstream: Upstream, call: Call, endpoint: Endpoint, peer: Peer) -> None:
        """Until the engine itself begins to answer. Raises NotTaken, or Problem when its connection broke: it may have
        begun to work."""
        headers = call.engine_headers(peer.host, self._clock())
        try:
            await upstream.ask(request_head("POST", call.path, headers), call.body)
        except BrokenOff as error:
            log.warning("engine %s failed a request of %s: %s", endpoint.engine, call.model, error)
            raise engine_lost(call.model) from error
        if upstream.status == 503 and GATE in upstream.headers:
            raise NotTaken(f"the gate of {endpoint.engine} is {upstream.headers[GATE]}", _retry_after(upstream))

    async def _peer(self, endpoint: Endpoint) -> Peer:
        peer = self._known.get(endpoint.url)
        if peer is None:
            try:
                peer = self._known[endpoint.url] = await self._peers.resolve(endpoint.url)
            except HostRefused as error:
                raise NotTaken(str(error), MAX_RETRY_S) from error
        return peer


def _retry_after(upstream: Upstream) -> float:
    try:
        asked = float(upstream.headers.get("Retry-After", RETRY_S))
    except ValueError:
        asked = RETRY_S
    return min(max(asked, RETRY_S), MAX_RETRY_S)
