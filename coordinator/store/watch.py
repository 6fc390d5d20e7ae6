"""One watch that survives: frames cut out of our own buffer, a revision whole, resumed so that nothing is lost or
seen twice.

What etcd's gateway does (measured on 3.4.23 and 3.5.1): a frame is a line; the answer to a
watch on compacted history is a frame and then silence; a stream is ended by closing its connection only; an expired
token shows as `permission denied`. And a deletion *at* the compacted revision is lost without a word, so a watch that
begins in the past asks for one revision more than it needs: then compaction shows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from coordinator.errors import Compacted, Rewound, StoreError
from coordinator.store import wire
from coordinator.store.access import Endpoint
from coordinator.store.base import Changes
from coordinator.store.channel import DECIDED, Channel
from coordinator.store.transport import NotSent, Refused, ReplyLost, Stalled

log = logging.getLogger(__name__)

PAUSE_S = 0.05
PAUSE_MAX_S = 1.0
DENIALS = 3
"""In a row, each with a fresh token, until we believe them."""
PERMISSION_DENIED = 7


class Framer:
    """Bytes in, whole lines out. aiohttp's `readline` gives up at 512 KiB; a transaction of large values is more."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        head, newline, tail = chunk.partition(b"\n")
        if not newline:
            self._parts.append(chunk)
            return []
        first = b"".join([*self._parts, head])
        *whole, rest = tail.split(b"\n")
        self._parts = [rest] if rest else []
        return [line for line in (first, *whole) if line]


class _Behind(Exception):
    """Opened in the past without the spare revision: open again with it."""


class Watch:
    """Iterate `changes()` once. `stall`: seconds of silence after which another connection is tried."""

    def __init__(self, channel: Channel, prefix: str, start_revision: int, *, stall: float) -> None:
        if start_revision < 1:
            raise ValueError("a watch starts at revision 1 or later")
        self._channel = channel
        self._prefix = prefix
        self._following = start_revision  # the first revision that was not delivered
        self._stall = stall
        self._spare = 0
        self._failures = 0
        self._denials = 0
        self._token = ""
        self._heard = False  # anything at all on the present stream

    async def changes(self) -> AsyncGenerator[Changes, None]:
        """Raises `Compacted`, `Rewound`, and `Refused` where etcd denies the watch for good."""
        while True:
            endpoint = self._channel.endpoint
            try:
                async with aclosing(self._one_stream(endpoint)) as stream:
                    async for batch in stream:
                        self._following = batch.revision + 1
                        yield batch
                raise ReplyLost("the server ended the stream")
            except _Behind:
                self._spare = 1
            except (NotSent, ReplyLost, Refused) as error:
                if isinstance(error, Refused) and error.code in DECIDED:
                    self._denied(error)
                self._spare = 1
                self._channel.avoid(endpoint)
                await self._pause(error)

    async def _one_stream(self, endpoint: Endpoint) -> AsyncGenerator[Changes, None]:
        start = max(1, self._following - self._spare)
        body = msgspec.json.encode(wire.watch_body(self._prefix, start))
        await self._channel.admit(endpoint)
        self._token = await self._channel.token(endpoint)
        framer = Framer()
        self._heard = False
        opened = self._channel.transport.stream(endpoint, "/watch", body, stall=self._stall, token=self._token)
        async with opened as chunks:
            async for chunk in chunks:
                for result in map(parse_frame, framer.feed(chunk)):
                    self._inspect(result, start)
                    for batch in wire.batches(result.events, self._following):
                        yield batch

    def _inspect(self, result: wire.WatchResult, start: int) -> None:
        """Raises where the frame says that this stream is of no use."""
        if result.compact_revision:
            raise Compacted(result.compact_revision)
        if result.canceled:
            raise Refused("/watch", wire.GatewayError(result.cancel_reason or "cancelled", code=PERMISSION_DENIED))
        if self._failures:
            log.info("watch on %s resumed at revision %d", self._prefix, self._following)
        self._heard = True
        self._failures = self._denials = 0
        if result.created and result.header.revision < self._following - 1:
            raise Rewound(result.header.revision)
        if result.created and not self._spare and start <= result.header.revision:
            raise _Behind

    def _denied(self, error: Refused) -> None:
        """Perhaps only the token has run out: 3.5 answers `permission denied` to that too."""
        self._channel.distrust(self._token)
        self._denials += 1
        if self._denials == DENIALS:
            raise error

    async def _pause(self, problem: StoreError) -> None:
        if isinstance(problem, Stalled) and self._heard:
            log.debug("watch on %s heard nothing for %g s: opened anew", self._prefix, self._stall)
            return
        self._failures += 1
        level = logging.WARNING if self._failures == 1 else logging.DEBUG
        log.log(level, "watch on %s at revision %d broke: %s", self._prefix, self._following, problem)
        await asyncio.sleep(min(PAUSE_S * 2 ** min(self._failures - 1, 10), PAUSE_MAX_S))


def parse_frame(line: bytes) -> wire.WatchResult:
    try:
        frame = msgspec.json.decode(line, type=wire.WatchFrame, strict=False)
    except msgspec.DecodeError as error:
        raise ReplyLost(f"a watch frame does not decode: {error}") from None
    if frame.error:
        raise Refused("/watch", frame.error)
    return frame.result or wire.WatchResult()
