"""Values to bytes and back: JSON, bounded by the types of `core.model` and by length before that."""

from __future__ import annotations

from functools import cache
from typing import TypeVar

import msgspec

from coordinator.core.model import Value
from coordinator.errors import SchemaError

MAX_VALUE = 1 << 20
"""Bytes. etcd itself takes 1.5 MiB a request."""

V = TypeVar("V", bound=Value)
encode = msgspec.json.Encoder().encode


def decode(kind: type[V], data: bytes) -> V:
    """Raises `SchemaError`, saying which field breaks which bound."""
    if len(data) > MAX_VALUE:
        raise SchemaError(f"{len(data)} bytes are more than {MAX_VALUE}")
    try:
        value: V = _decoder(kind).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SchemaError(f"no {kind.__name__}: {error}") from None
    return value


@cache
def _decoder(kind: type[V]) -> msgspec.json.Decoder[V]:
    return msgspec.json.Decoder(kind)
