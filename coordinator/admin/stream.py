"""One answer to `GET /v1/events`: the state, then what happens, and where it is asked for the state again and again."""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec
from aiohttp import web

from coordinator.admin.feed import KINDS, Feed, Subscription
from coordinator.core.view import State
from coordinator.gateway.problem import bad_request

QUIET_S = 15.0
"""A comment goes out that often on a stream without news, so that proxies and clients know it lives."""
STATE_S = 0.5
"""The state is sent again at most that often, and only when it may have changed."""
STATE = "state"
HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def wanted(text: str | None) -> frozenset[str]:
    """The kinds that `?kinds=` asks for; None: all but the repeated state. Raises Problem (400)."""
    if text is None:
        return frozenset(KINDS)
    kinds = frozenset(filter(None, text.split(",")))
    if unknown := kinds - {*KINDS, STATE}:
        raise bad_request(f"no kind is called {min(unknown)!r}; there are {', '.join((STATE, *KINDS))}", "kinds")
    return kinds


class Viewed(Protocol):
    """Whose state it is."""

    def view(self) -> State: ...


class View:
    """The state as a frame, encoded once for all who watch the same turn."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._turn = -1
        self._frame = b""

    def frame(self, state: State) -> bytes:
        if self._turn != self._feed.turn or not self._frame:
            self._turn = self._feed.turn
            self._frame = b"event: state\ndata: " + msgspec.json.encode(state) + b"\n\n"
        return self._frame


class Stream:
    """One reader's stream."""

    def __init__(self, feed: Feed, view: View, kinds: frozenset[str]) -> None:
        self._feed = feed
        self._view = view
        self._kinds = kinds
        self._clock = asyncio.get_running_loop().time
        self._turn = -1
        self._state_at = self._wrote_at = self._clock()

    async def run(self, request: web.Request, core: Viewed) -> web.StreamResponse:
        response = web.StreamResponse(headers=HEADERS)
        with self._feed.subscribe(self._kinds) as subscription:
            await response.prepare(request)
            await self._state(response, core)
            await self._follow(subscription, response, core)
            if subscription.lagged:
                await response.write(b"event: lagged\ndata: {}\n\n")
        return response

    async def _follow(self, subscription: Subscription, response: web.StreamResponse, core: Viewed) -> None:
        again = STATE in self._kinds
        while (frame := await subscription.next(STATE_S if again else QUIET_S)) is not None:
            if frame:
                await self._write(response, frame)
            if again and self._turn != self._feed.turn and self._clock() - self._state_at >= STATE_S:
                await self._state(response, core)
            if self._clock() - self._wrote_at >= QUIET_S:
                await self._write(response, b": quiet\n\n")

    async def _state(self, response: web.StreamResponse, core: Viewed) -> None:
        self._turn, self._state_at = self._feed.turn, self._clock()
        await self._write(response, self._view.frame(core.view()))

    async def _write(self, response: web.StreamResponse, frame: bytes) -> None:
        self._wrote_at = self._clock()
        await response.write(frame)
