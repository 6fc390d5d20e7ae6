"""What clients ask for, in time: JSON lines `{"t": seconds, "model": name, "prompt_tokens": n, "output_tokens": n}`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec

from coordinator.core.model import Name
from coordinator.errors import ConfigError

Tokens = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]
At = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class Request(msgspec.Struct, frozen=True):
    """One request: `t` in seconds from the beginning of the trace."""

    t: At
    model: Name
    prompt_tokens: Tokens = 256
    output_tokens: Tokens = 64


def read(path: Path, models: Iterable[str]) -> list[Request]:
    """The trace in `path`, in order of time. Raises ConfigError naming file and line; so it does for a model that is
    not among `models`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}", remedy="name a trace by --trace FILE") from None
    known = set(models)
    requests = [_request(path, number, line, known) for number, line in enumerate(lines, 1) if line.strip()]
    if not requests:
        raise ConfigError(f"{path}: holds no request", remedy='write lines as {"t": 0.5, "model": "a"}')
    return sorted(requests, key=lambda request: request.t)


def _request(path: Path, number: int, line: str, known: set[str]) -> Request:
    try:
        request = msgspec.json.decode(line, type=Request)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: line {number}: {error}", remedy="docs/scheduling.md has the format") from None
    if request.model not in known:
        remedy = f"the fleet has {', '.join(sorted(known)[:8])}"
        raise ConfigError(f"{path}: line {number}: no model {request.model!r}", remedy=remedy)
    return request


def write(path: Path, requests: Iterable[Request]) -> None:
    """As `read` reads it. Raises OSError."""
    encode = msgspec.json.Encoder().encode
    path.write_bytes(b"".join(encode(request) + b"\n" for request in requests))
