"""One HTTP exchange with one etcd member, by etcd3-py's `AioClient` as a raw transport and nothing else of it.

etcd3-py 0.1.6's own watch, lease and model layers lose events and hang with any aiohttp since 3.10; what we use of it
is the request: URL, headers, body. Sessions are our own: one for calls and one for streams, so that open watches never
starve a call. `Transport` is the seam: anything that can POST may stand in.
"""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Protocol

import aiohttp
import msgspec

from coordinator.errors import StoreError, StoreUnavailable
from coordinator.store import wire
from coordinator.store.access import Access, Endpoint

if TYPE_CHECKING:
    from etcd3 import AioClient

CONNECT_TIMEOUT_S = 1.0


class NotSent(StoreUnavailable):
    """No connection: the request certainly did not reach etcd."""


class ReplyLost(StoreError):
    """The request may have reached etcd; its answer did not reach us."""


class Stalled(ReplyLost):
    """Nothing came for as long as we were told to wait."""


class Refused(StoreError):
    """etcd answered with an error: `code` is gRPC's (https://grpc.io/docs/guides/status-codes/)."""

    def __init__(self, path: str, error: wire.GatewayError) -> None:
        self.code = error.code if error.grpc_code is None else error.grpc_code
        self.text = error.message or error.error
        super().__init__(f"etcd refused {path}: {self.text} (code {self.code})", remedy=_REMEDIES.get(self.code, ""))


_REMEDIES = {
    7: "grant the etcd role this prefix, see docs/protocol.md",
    8: "compact and defragment etcd, or raise its quota",
    16: "check VNPU_ETCD_USER and VNPU_ETCD_PASSWORD",
}


class Transport(Protocol):
    """Raises `NotSent`, `ReplyLost` or `Refused`, and nothing else. `token` is etcd's auth token, empty for none."""

    async def post(self, endpoint: Endpoint, path: str, body: bytes, *, timeout: float, token: str) -> bytes:
        """The answer's body."""
        ...

    async def version(self, endpoint: Endpoint, *, timeout: float) -> str:
        """The member's version, e.g. `3.5.1`."""
        ...

    def stream(
        self, endpoint: Endpoint, path: str, body: bytes, *, stall: float, token: str
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The answer's bytes as they come; silence of `stall` seconds is a `ReplyLost`. Leaving it ends the call."""
        ...

    async def close(self) -> None: ...


class Etcd3Transport:
    """`Transport` on etcd3-py. Make it anywhere, use it on one event loop."""

    def __init__(self, access: Access) -> None:
        self._tls = access.tls
        self._client_class = _client_class()
        self._calls: dict[Endpoint, AioClient] = {}
        self._streams: dict[Endpoint, AioClient] = {}
        self._sessions: list[aiohttp.ClientSession] = []

    async def post(self, endpoint: Endpoint, path: str, body: bytes, *, timeout: float, token: str) -> bytes:
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, CONNECT_TIMEOUT_S))
        client = self._client(endpoint, self._calls)
        with _told_apart(endpoint, path):
            async with client.call_rpc(
                path, _sendable(body), raw=True, timeout=limits, headers=_headers(token)
            ) as response:
                answer = await response.read()
        _raise_refusal(path, response.status, answer)
        return answer

    async def version(self, endpoint: Endpoint, *, timeout: float) -> str:
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=min(timeout, CONNECT_TIMEOUT_S))
        with _told_apart(endpoint, "/version"):
            async with self._client(endpoint, self._calls).session.get(
                f"{endpoint.url}/version", timeout=limits
            ) as got:
                answer = await got.read()
        try:
            return msgspec.json.decode(answer, type=wire.VersionReply).etcdserver
        except msgspec.DecodeError:
            raise ReplyLost(f"{endpoint.url}/version answered no etcd version", remedy="is this etcd?") from None

    @asynccontextmanager
    async def stream(
        self, endpoint: Endpoint, path: str, body: bytes, *, stall: float, token: str
    ) -> AsyncGenerator[AsyncIterator[bytes], None]:
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=stall)
        client = self._client(endpoint, self._streams)
        with _told_apart(endpoint, path):
            response = await client.call_rpc(path, body, raw=True, timeout=limits, headers=_headers(token))
        try:
            if response.status >= 400:
                with _told_apart(endpoint, path):
                    answer = await response.read()
                _raise_refusal(path, response.status, answer)
            yield _Chunks(response, endpoint, path)
        finally:
            response.close()  # not release(): closing the connection is the only way to cancel a watch at the gateway

    async def close(self) -> None:
        for session in self._sessions:
            await session.close()

    def _client(self, endpoint: Endpoint, clients: dict[Endpoint, AioClient]) -> AioClient:
        if endpoint not in clients:
            # No limit: each watch occupies a connection, and etcd bounds them anyway.
            connector = aiohttp.TCPConnector(limit=0, ssl=self._tls if self._tls else True)
            session = aiohttp.ClientSession(connector=connector)
            self._sessions.append(session)
            clients[endpoint] = self._client_class(endpoint, session)
        return clients[endpoint]


def _client_class() -> Callable[[Endpoint, aiohttp.ClientSession], AioClient]:
    """Imported late: etcd3-py brings requests, pyOpenSSL and 0.3 s of imports along."""
    import etcd3
    import semantic_version
    from etcd3.baseclient import BaseClient

    class Client(etcd3.AioClient):
        """`AioClient` without its constructor's blocking GET /version, and with our session in place of its own."""

        def __init__(self, endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
            BaseClient.__init__(self, host=endpoint.host, port=endpoint.port, protocol=endpoint.scheme)
            self.session = session

        def _retrieve_version(self) -> None:
            """3.4 is the first whose gateway has the prefix /v3."""
            self.server_version = self.cluster_version = "3.4.0"
            self.server_version_sem = self.cluster_version_sem = semantic_version.Version("3.4.0")

    return Client


def _sendable(body: bytes) -> bytes | io.BytesIO:
    """aiohttp wants more than a mebibyte as a file, which it sends in pieces."""
    return body if len(body) <= 1 << 20 else io.BytesIO(body)


def _headers(token: str) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    return headers | {"Authorization": token} if token else headers


class _Chunks:
    """A response's bytes as they come. No generator: it needs no closing of its own."""

    def __init__(self, response: aiohttp.ClientResponse, endpoint: Endpoint, path: str) -> None:
        self._response = response
        self._endpoint = endpoint
        self._path = path

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        with _told_apart(self._endpoint, self._path):
            chunk = await self._response.content.readany()
        if not chunk:
            raise StopAsyncIteration
        return chunk


@contextmanager
def _told_apart(endpoint: Endpoint, path: str) -> Iterator[None]:
    """aiohttp's errors, sorted by the one question that matters: can etcd have seen the request?"""
    where = f"etcd at {endpoint.url}{path}"
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise NotSent(f"{where}: cannot connect: {error}", remedy="is etcd running there?") from error
    except TimeoutError as error:
        raise Stalled(f"{where}: no answer in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise ReplyLost(f"{where}: {type(error).__name__}: {error}") from error


def _raise_refusal(path: str, status: int, answer: bytes) -> None:
    if status < 400:
        return
    try:
        error = msgspec.json.decode(answer, type=wire.GatewayError)
    except msgspec.DecodeError:
        # Not etcd's words: a proxy's, which may have passed the request on.
        raise ReplyLost(f"{path} was answered with HTTP {status}") from None
    raise Refused(path, error)
