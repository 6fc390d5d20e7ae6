"""Server-sent events on their way through: whole lines only, and the end that makes a stream a complete answer.

https://html.spec.whatwg.org/multipage/server-sent-events.html; most of OpenAI's streams end with `data: [DONE]`, those
of the Responses API and of Anthropic's messages with an event of a certain name.
"""

from __future__ import annotations

import msgspec

from coordinator.gateway.problem import Problem

DONE = b"data: [DONE]"
_NAMES = b"\nevent:"
TAIL = 64
"""Bytes of a stream that are kept to see whether they end it."""


class LineRelay:
    """Passes bytes on in whole lines, so that what is appended after a break is never glued to half an event. `ends`:
    names of events that end the stream; none: `data: [DONE]` does.

    A line longer than `limit` is passed on in pieces: nothing here grows without bound."""

    def __init__(self, ends: frozenset[bytes] = frozenset(), limit: int = 1 << 20) -> None:
        self._ends = ends
        self._limit = limit
        self._rest = b""
        self._last = b"\n"
        self._event = b""

    def feed(self, chunk: bytes) -> bytes:
        """What may be sent on now; empty while a line is incomplete."""
        data = self._rest + chunk
        end = data.rfind(b"\n") + 1 if len(data) <= self._limit or b"\n" in data else len(data)
        ready, self._rest = data[:end], data[end:]
        self._passed(ready)
        return ready

    def finish(self) -> bytes:
        """The incomplete last line, if the stream ended in one."""
        ready, self._rest = self._rest, b""
        self._passed(ready)
        return ready

    def _passed(self, ready: bytes) -> None:
        if self._ends and ready:
            seen = self._last[-1:] + ready
            if (start := seen.rfind(_NAMES)) >= 0:
                self._event = seen[start + len(_NAMES) :].partition(b"\n")[0].strip()
        self._last = ready[-TAIL:] if len(ready) >= TAIL else (self._last + ready)[-TAIL:]

    @property
    def complete(self) -> bool:
        """Whether the stream's last event is the one that ends an answer."""
        if self._ends:
            return self._event in self._ends and self._last.replace(b"\r", b"").endswith(b"\n\n")
        return self._last.rstrip().endswith(DONE)


def error_event(problem: Problem, *, named: bool = False) -> bytes:
    """An event that clients raise as an error; starts with a line end that closes an event left open. `named`: for
    streams whose events have names, in the shape that both the Responses API and Anthropic's messages read."""
    if not named:
        return b"\ndata: " + problem.body + b"\n\n"
    told = {"type": "error", "code": problem.code, "message": str(problem), "param": problem.param}
    whole = {**told, **msgspec.json.decode(problem.body, type=dict[str, msgspec.Raw])}
    return b"\nevent: error\ndata: " + msgspec.json.encode(whole) + b"\n\n"
