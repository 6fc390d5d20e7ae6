"""One request on its way: what goes to the engine, under which ids, until when."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

import msgspec

REQUEST_ID = "X-Request-Id"
DEADLINE = "X-VNPU-Deadline"
"""Seconds that a request may still wait; the engine's gate obeys it."""

AT_ONCE = 64
"""Ids that are made together."""
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_PASSED = ("Accept", "Authorization", "traceparent", "tracestate")


class Call(msgspec.Struct, frozen=True):
    """`engine_id` is the request's id at the engine: minted here, because engines derive transfer ids from it and some
    connectors read addresses out of it (CVE-2026-116176). `client_id` is echoed to the client. `deadline`
    and `arrived` are monotonic."""

    model: str
    path: str
    body: bytes
    headers: Mapping[str, str]
    deadline: float
    arrived: float
    client_id: str
    engine_id: str
    content_type: str = "application/json"

    def engine_headers(self, host: str, now: float) -> dict[str, str]:
        """Headers to an engine that goes by `host`."""
        return {
            **self.headers,
            "Host": host,
            "Content-Type": self.content_type,
            "Content-Length": str(len(self.body)),
            REQUEST_ID: self.engine_id,
            DEADLINE: f"{max(0.0, self.deadline - now):.3f}",
        }


class _Random:
    """Ids that nobody can guess, made many at a time: it is the kernel that is asked for them."""

    def __init__(self) -> None:
        self._made: list[str] = []

    def take(self) -> str:
        """128 bits, in hexadecimal."""
        if not self._made:
            more = secrets.token_hex(16 * AT_ONCE)
            self._made = [more[n : n + 32] for n in range(0, len(more), 32)]
        return self._made.pop()


_random = _Random()


def ids(headers: Mapping[str, str]) -> tuple[str, str]:
    """(client id, engine id): the client's id where it is sane, else one of ours; the engine's is always ours."""
    minted = _random.take()
    given = headers.get(REQUEST_ID, "")
    return (given if _SANE_ID.fullmatch(given) else minted), minted


def passed(headers: Mapping[str, str], *, keyed: bool = False) -> dict[str, str]:
    """The few of a client's headers that an engine gets to see; none of them chooses a rank, a peer or an encoding.
    `keyed`: the key that was sent is the gateway's, and no matter of the engine's."""
    names = [name for name in _PASSED if not (keyed and name == "Authorization")]
    return {name: headers[name] for name in names if name in headers}


def allowed_wait(headers: Mapping[str, str], limit_s: float) -> float:
    """Seconds that a request may wait: the client may ask for less than the limit, never for more."""
    try:
        asked = float(headers.get(DEADLINE, limit_s))
    except ValueError:
        return limit_s
    return min(limit_s, asked) if asked >= 0 else limit_s
