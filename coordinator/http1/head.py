"""Heads of messages: fields as they are parsed, within bounds, and as they are written (RFC 9112)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from multidict import CIMultiDict

from coordinator.errors import VnpuError

MOST_BYTES: Final = 32 << 10
MOST_FIELDS: Final = 200
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}


class HeadTooLarge(VnpuError):
    """More than MOST_BYTES or MOST_FIELDS."""


class Fields:
    """Collects the fields of one head after the other."""

    def __init__(self) -> None:
        self._fields: list[tuple[str, str]] = []
        self._bytes = 0

    def add(self, name: bytes, value: bytes) -> None:
        """Bytes that are no UTF-8 come through as they are. Raises HeadTooLarge."""
        self._bytes += len(name) + len(value)
        if len(self._fields) >= MOST_FIELDS or self._bytes > MOST_BYTES:
            raise HeadTooLarge(f"over {MOST_FIELDS} header fields, or over {MOST_BYTES} bytes of them")
        self._fields.append((name.decode("latin-1"), value.decode("utf-8", "surrogateescape")))

    def take(self) -> CIMultiDict[str]:
        """What was collected; the next head starts empty."""
        fields = CIMultiDict(self._fields)
        self._fields.clear()
        self._bytes = 0
        return fields


def media_type(fields: Mapping[str, str]) -> str:
    """Of a body, without parameters, in small letters; empty: not told."""
    return fields.get("Content-Type", "").partition(";")[0].strip().lower()


def request_head(method: str, target: str, fields: Mapping[str, str]) -> bytes:
    """Raises ValueError for a value that would end its line."""
    return _head(f"{method} {target} HTTP/1.1", fields)


def status_head(status: int, fields: Mapping[str, str]) -> bytes:
    """With the date. Raises as `request_head`."""
    return _head(f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\nDate: {_date.now()}", fields)


def _head(start: str, fields: Mapping[str, str]) -> bytes:
    values = "".join(fields.values())
    if "\n" in values or "\r" in values or "\0" in values:  # a third of what a regular expression takes
        raise ValueError("a header's value holds a line end")
    lines = [start, *map(": ".join, fields.items()), "\r\n"]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")


class _Date:
    """The time of day as HTTP writes it, made once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._text = ""

    def now(self) -> str:
        if (second := int(time.time())) != self._second:
            self._second, self._text = second, formatdate(second, usegmt=True)
        return self._text


_date = _Date()
