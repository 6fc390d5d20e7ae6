"""A client's request: its head is whole, its body comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from multidict import CIMultiDict

from coordinator.http1.head import media_type

MOST_AHEAD: Final = 256 << 10
"""Bytes of a body that are taken from the network before somebody reads them."""


class Source(Protocol):
    """Where a body comes from."""

    def hold(self) -> None:
        """Send no more for now."""

    def go_on(self) -> None:
        """Send again; where the client waits to be asked for the body, ask."""


class Request:
    """`path` is without query, unescaped. `modern`: HTTP/1.1, its client takes an answer in chunks. `persists`: and
    another one on this connection."""

    __slots__ = ("_ahead", "_parts", "_source", "_waiter", "headers", "method", "modern", "path", "persists", "whole")

    def __init__(
        self, method: str, path: str, headers: CIMultiDict[str], source: Source, *, modern: bool, persists: bool
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.modern = modern
        self.persists = persists
        self.whole = False
        self._source = source
        self._parts: list[bytes] = []
        self._ahead = 0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def content_length(self) -> int | None:
        """None: not told beforehand."""
        told = self.headers.get("Content-Length")
        return int(told) if told is not None else None

    @property
    def content_type(self) -> str:
        """Without parameters, in small letters."""
        return media_type(self.headers)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, once. Its reader is cancelled when the client leaves."""
        while True:
            if self._parts:
                yield self.here()
            elif self.whole:
                return
            else:
                self._source.go_on()
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter

    def here(self) -> bytes:
        """What has come of the body and was not read: all that is left where it is `whole`."""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._ahead = 0
        return data

    def feed(self, data: bytes) -> None:
        """The next bytes of the body, from its connection."""
        self._parts.append(data)
        self._ahead += len(data)
        if self._ahead > MOST_AHEAD:
            self._source.hold()
        self._wake()

    def end(self) -> None:
        """The body is whole."""
        self.whole = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def path_of(target: bytes, host: str) -> str | None:
    """The path that a request's target names, unescaped; None: it names none, or another host than `host`."""
    try:
        text = target.decode("ascii")
        if text.startswith("/"):
            return unquote(text.partition("?")[0])
        parts = urlsplit(text)
    except ValueError:
        return None
    if parts.scheme != "http" or parts.netloc.lower() != host.lower():
        return None
    return unquote(parts.path) or "/"
