"""Server-sent events on their way through: whole lines only, and the end that makes a stream a complete answer.

https://html.spec.whatwg.org/multipage/server-sent-events.html; OpenAI's streams end with `data: [DONE]`.
"""

from __future__ import annotations

from coordinator.gateway.problem import Problem

DONE = b"data: [DONE]"


class LineRelay:
    """Passes bytes on in whole lines, so that what is appended after a break is never glued to half an event.

    A line longer than `limit` is passed on in pieces: nothing here grows without bound."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self._limit = limit
        self._rest = b""
        self._last = b""

    def feed(self, chunk: bytes) -> bytes:
        """What may be sent on now; empty while a line is incomplete."""
        data = self._rest + chunk
        end = data.rfind(b"\n") + 1 if len(data) <= self._limit or b"\n" in data else len(data)
        ready, self._rest = data[:end], data[end:]
        self._last = (self._last + ready)[-64:]
        return ready

    def finish(self) -> bytes:
        """The incomplete last line, if the stream ended in one."""
        ready, self._rest = self._rest, b""
        self._last = (self._last + ready)[-64:]
        return ready

    @property
    def complete(self) -> bool:
        """Whether the stream's last event is the one that ends an answer."""
        return self._last.rstrip().endswith(DONE)


def error_event(problem: Problem) -> bytes:
    """An event that OpenAI's clients raise as an error; starts with a line end that closes an event left open."""
    return b"\ndata: " + problem.body + b"\n\n"
